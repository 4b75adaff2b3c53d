"""Benchmarks: each module is a command that writes a table, caches every cell and can be resumed."""
