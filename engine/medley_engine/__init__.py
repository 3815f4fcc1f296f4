"""Medley's elastic engine: a mixture-of-experts server that grows and shrinks in place, without dropping a request.

Layers, each importing only those before it:

- the pure core (no torch, no I/O, no clock): ``config``, ``layout``, ``placement``, ``transition``, ``extents``,
  ``scheduler``, ``operations``, ``load``;
- ``memory``: pages, mappings and the weight and KV manager (HMM), a daemon that outlives engines;
- ``runtime``: the model and the rank processes that compute (torch);
- ``serving``: supervisor, instances (IMM), coordinator with the HTTP API, and the ``medley-engine`` command.
"""
