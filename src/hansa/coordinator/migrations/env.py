"""Alembic's entry: runs the steps on the connection that the journal hands in."""

from alembic import context

if __name__ == "env_py":  # the name under which alembic runs this file; an import of it does nothing
    context.configure(connection=context.config.attributes["connection"], target_metadata=None)
    with context.begin_transaction():
        context.run_migrations()
