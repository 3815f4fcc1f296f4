"""Pages and who may use them: memfd pools, virtual mappings, the Unix-socket protocol and the manager (HMM)."""
