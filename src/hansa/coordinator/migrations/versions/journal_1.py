"""The first form: records and events."""

import sqlalchemy as sa
from alembic import op

revision = "journal_1"
down_revision = None


def upgrade() -> None:
    """Make both tables."""
    op.create_table(
        "record",
        sa.Column("scope", sa.String(200), primary_key=True),
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("value", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "event",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("kind", sa.String(100), nullable=False),
        sa.Column("study", sa.String(100), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
    )
    op.create_index("ix_event_study", "event", ["study"])
