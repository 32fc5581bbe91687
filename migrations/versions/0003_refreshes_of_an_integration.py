"""Attempts name their integration: its refreshes that worked or fail are found without a walk."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_FAILING = sa.text("state = 'active' AND failures > 0")
_REFRESHED = sa.text("kind = 'refresh' AND outcome = 'installed'")


def upgrade() -> None:
    """Attempts of before name none, and tell nothing of their integration."""
    op.add_column("attempt", sa.Column("integration_id", sa.String(), nullable=True))
    _partial_index("ix_attempt_refreshed", "attempt", "closed_at", _REFRESHED)
    _partial_index("ix_connection_failing", "connection", "last_failed_at", _FAILING)


def _partial_index(name: str, table: str, moment: str, where: sa.TextClause) -> None:
    """Of an integration's rows for which the condition holds, by a moment."""
    columns = ["tenant", "integration_id", moment]
    op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
