"""Steps by which alembic brings an older journal to the present form."""
