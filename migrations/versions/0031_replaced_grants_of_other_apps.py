"""Consents: whether one may also replace a grant that another app's consent has brought.

False for those of before: the app that made a connection, and an admin, ask for new ones.
"""

import sqlalchemy as sa
from alembic import op

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    column = sa.Column("replaces_any", sa.Boolean(), nullable=False, server_default=sa.false())
    op.add_column("consent", column)


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
