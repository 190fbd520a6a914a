"""Benchmarks: ``python -m app.bench``."""
