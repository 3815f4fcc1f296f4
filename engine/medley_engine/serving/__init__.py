"""The shell: supervisor, instances (IMM), coordinator with its HTTP API, and the command."""
