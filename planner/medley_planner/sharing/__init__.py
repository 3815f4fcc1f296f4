"""Many services under what they share: who has to be planned together, the decomposition, shadow prices."""
