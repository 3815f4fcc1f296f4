"""Facts: what GPUs can do, what models need, and a model's `config.json` read for them."""
