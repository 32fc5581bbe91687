"""Which grants are only good for being exchanged for a long-lived one."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    no = sa.false()
    op.add_column("connection_grant", sa.Column("interim", sa.Boolean(), nullable=False, server_default=no))


def downgrade() -> None:
    """A store is never taken down: going back means restoring a backup."""
    raise RuntimeError("first tokens would be taken for long-lived ones")
