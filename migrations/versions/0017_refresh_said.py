"""Of an integration's refresh rules, what its admin said: the rest follows the provider's definition."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("integration", sa.Column("refresh_said", sa.JSON(), nullable=True))


def downgrade() -> None:
    """A store is never taken down: going back means restoring a backup."""
    raise RuntimeError("what was said would be forgotten")
