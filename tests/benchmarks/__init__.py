"""The commands in benchmarks/."""
