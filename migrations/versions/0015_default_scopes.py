"""Whether a connection's scopes are its integration's defaults: then a pending one follows them."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    column = sa.Column("default_scopes", sa.Boolean(), nullable=False, server_default=sa.false())
    op.add_column("connection", column)


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
