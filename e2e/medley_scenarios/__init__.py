"""What a cluster is put through, as functions that return what was measured: tests assert on it, benchmarks print it."""
