"""Numerical tables of the layers: ``python -m app.tables``."""
