"""Authenticators of pins."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Connections of before have none: `db upgrade` writes them, with the key file, after the schema."""
    op.add_column("connection", sa.Column("account_mac", sa.String(), nullable=True))


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
