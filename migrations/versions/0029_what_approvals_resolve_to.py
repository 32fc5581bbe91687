"""Approvals keep what their command's names stood for when it was sent."""

import sqlalchemy as sa
from alembic import op

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("approval", sa.Column("resolves_to", sa.JSON(), nullable=False, server_default="{}"))


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
