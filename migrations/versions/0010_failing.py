"""What a connection's refreshes failed with, and since when it is known to be failing."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("connection", sa.Column("failures", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("connection", sa.Column("last_failure", sa.String(), nullable=True))
    op.add_column("connection", sa.Column("last_failed_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("connection", sa.Column("failing_since", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """A store is never taken down: going back means restoring a backup."""
    raise RuntimeError("what fails would be forgotten")
