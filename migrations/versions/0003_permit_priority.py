"""Permits have a priority: how large the part of a provider's API is that their app has."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("permit", sa.Column("priority", sa.String(), server_default="normal", nullable=False))


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
