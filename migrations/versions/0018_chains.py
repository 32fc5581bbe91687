"""Connections that one consent brings together, and the scopes asked for each of them."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("connection", sa.Column("chain_scopes", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("connection", sa.Column("consented_with", sa.String(), nullable=True))
    op.add_column("consent", sa.Column("chain_scopes", sa.JSON(), nullable=False, server_default="{}"))


def downgrade() -> None:
    """A store is never taken down: going back means restoring a backup."""
    raise RuntimeError("which connections belong together would be forgotten")
