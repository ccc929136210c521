"""See `pyproject.toml`."""
