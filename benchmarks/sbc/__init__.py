"""Simulation-based calibration: ``python -m benchmarks.sbc``."""
