"""What a cluster is put through: functions that return what was measured. Tests assert on it, benchmarks print it."""
