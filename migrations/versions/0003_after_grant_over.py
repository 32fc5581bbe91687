"""Integrations say whether a dead grant's access token is leased until its date."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "integration", sa.Column("after_grant_over", sa.String(), server_default="lease", nullable=False)
    )


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
