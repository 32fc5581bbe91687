"""Flows beside the authorization code: a flow per connection, and keys of our own at providers."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "connection",
        sa.Column("flow", sa.String(), nullable=False, server_default="authorization_code"),
    )
    op.add_column("connection", sa.Column("target", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("connection", sa.Column("source", sa.String(), nullable=True))
    op.add_column("integration", sa.Column("sealed_client_key", sa.LargeBinary(), nullable=True))
    op.add_column("consent", sa.Column("sealed_device", sa.LargeBinary(), nullable=True))


def downgrade() -> None:
    """A store is never taken down: going back means restoring a backup."""
    raise RuntimeError("keys of integrations and device codes would be lost")
