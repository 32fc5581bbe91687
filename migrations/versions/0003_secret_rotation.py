"""A client secret is rotated with an overlap: the one before it is kept for a while."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("integration", sa.Column("sealed_previous_secret", sa.LargeBinary(), nullable=True))
    op.add_column(
        "integration", sa.Column("previous_secret_until", sa.DateTime(timezone=True), nullable=True)
    )
    op.add_column("integration", sa.Column("secret_refused_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """A store is never taken down: going back means restoring a backup."""
    raise RuntimeError("secrets that alone work would be lost")
