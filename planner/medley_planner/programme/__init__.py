"""The integer programme: a service in figures, the readable model, the fast way to solve it, proven bounds."""
