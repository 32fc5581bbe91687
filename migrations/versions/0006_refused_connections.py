"""Connections that ended as `refresh_refused` are found without a walk over their integration's."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_REFUSED = sa.text("state = 'needs_reauth' AND reason = 'refresh_refused'")


def upgrade() -> None:
    columns = ["tenant", "integration_id", "changed_at"]
    op.create_index(
        "ix_connection_refused", "connection", columns, sqlite_where=_REFUSED, postgresql_where=_REFUSED
    )


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
