"""Reports of runs: ``python -m app.report``."""
