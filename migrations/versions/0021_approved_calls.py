"""Permits whose requests each need a person's approval."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    needs = sa.Column("call_approval", sa.Boolean(), nullable=False, server_default=sa.false())
    op.add_column("permit", needs)


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
