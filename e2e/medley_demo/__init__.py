"""The story of `make demo`: what Medley does, told by a real cluster."""
