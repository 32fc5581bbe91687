"""Integrations keep the signing key of before a rotation, until its overlap ends."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("integration", sa.Column("sealed_previous_key", sa.LargeBinary(), nullable=True))


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
