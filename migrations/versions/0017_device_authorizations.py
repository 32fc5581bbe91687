"""Clients of the gateways may have their person decide on another device (RFC 8628)."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "client_login", sa.Column("device", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.add_column("authorization_request", sa.Column("device_id", sa.String(), nullable=True))
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "device_authorization",
        sa.Column("tenant", sa.String(), primary_key=True),
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("client_id", sa.String(), nullable=False),
        sa.Column("resource", sa.String(), nullable=False),
        sa.Column("connection_id", sa.String(), nullable=True),
        sa.Column("device_hash", sa.String(), nullable=False),
        sa.Column("user_code", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("interval_s", sa.Integer(), nullable=False),
        sa.Column("polled_at", moment, nullable=True),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("expires_at", moment, nullable=False),
        sa.Column("mac", sa.String(), nullable=True),
    )
    for column, unique in (("device_hash", True), ("user_code", True), ("expires_at", False)):
        name = f"ix_device_authorization_{column}"
        op.create_index(name, "device_authorization", [column], unique=unique)


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
