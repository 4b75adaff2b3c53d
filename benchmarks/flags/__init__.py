"""Which bad fits are flagged, and which good ones are: ``python -m benchmarks.flags``."""
