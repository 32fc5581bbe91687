"""Authorization requests that are pushed (RFC 9126): what is asked, and the reference that came back."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("consent", sa.Column("sealed_request", sa.LargeBinary(), nullable=True))


def downgrade() -> None:
    """A store is never taken down: going back means restoring a backup."""
    raise RuntimeError("requests that are under way would be forgotten")
