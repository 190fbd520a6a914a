"""The gradient rules as a picture: ``python -m app.plot``."""
