"""What a callback brings beside its code is bound to the consent."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("consent", sa.Column("facts", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("consent", sa.Column("granted_scopes", sa.JSON(), nullable=True))


def downgrade() -> None:
    """A store is never taken down: going back means restoring a backup."""
    raise RuntimeError("what callbacks brought would be forgotten")
