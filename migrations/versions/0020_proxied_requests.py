"""The methods and paths of a provider's API that a permit is about."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("permit", sa.Column("methods", sa.JSON(), nullable=True))
    op.add_column("permit", sa.Column("paths", sa.JSON(), nullable=True))


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
