"""Which accounts a grant reaches, and which one a connection is for."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("connection", sa.Column("follow_up", sa.String(), nullable=True))
    op.add_column("connection", sa.Column("choice", sa.String(), nullable=True))
    op.add_column("connection_grant", sa.Column("options", sa.JSON(), nullable=False, server_default="[]"))


def downgrade() -> None:
    """A store is never taken down: going back means restoring a backup."""
    raise RuntimeError("choices would be forgotten")
