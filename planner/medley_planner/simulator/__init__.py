"""A planned fleet in simulated time: requests arrive, are routed as planned, and are served by continuous batching."""
