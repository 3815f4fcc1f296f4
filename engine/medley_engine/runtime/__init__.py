"""What computes: the model, its collectives, and the rank process (torch)."""
