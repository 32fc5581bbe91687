"""Webhooks, the events they are told and the deliveries on their way."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_PENDING = sa.text("status = 'pending'")


def upgrade() -> None:
    _webhooks()
    _events()
    _deliveries()


def downgrade() -> None:
    """A store is never taken down: going back means restoring a backup."""
    raise RuntimeError("events that wait for their delivery would be lost")


def _webhooks() -> None:
    op.create_table(
        "webhook",
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("events", sa.JSON(), nullable=False),
        sa.Column("integration", sa.String(), nullable=False),
        sa.Column("disabled_by", sa.String(), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("failing_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("paused_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("sealed_secret", sa.LargeBinary(), nullable=False),
        sa.Column("sealed_previous_secret", sa.LargeBinary(), nullable=True),
        sa.Column("previous_secret_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("secret_changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_webhook"),
        sa.UniqueConstraint("tenant", "name", name="uq_webhook_tenant_name"),
    )
    op.create_index("ix_webhook_id", "webhook", ["id"], unique=True)


def _events() -> None:
    op.create_table(
        "event",
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("connection_id", sa.String(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_event"),
    )
    op.create_index("ix_event_tenant_at", "event", ["tenant", "at"])


def _deliveries() -> None:
    op.create_table(
        "delivery",
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("webhook_id", sa.String(), nullable=False),
        sa.Column("event_id", sa.String(), nullable=False),
        sa.Column("event_type", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("by_hand", sa.Boolean(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("response_status", sa.Integer(), nullable=True),
        sa.Column("problem", sa.String(), nullable=True),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_delivery"),
        sa.ForeignKeyConstraint(
            ["tenant", "event_id"], ["event.tenant", "event.id"], name="fk_delivery_event"
        ),
    )
    op.create_index("ix_delivery_tenant_event_id", "delivery", ["tenant", "event_id"])
    op.create_index(
        "ix_delivery_tenant_webhook_id_created_at_id",
        "delivery",
        ["tenant", "webhook_id", "created_at", "id"],
    )
    op.create_index(
        "ix_delivery_pending",
        "delivery",
        ["tenant", "webhook_id", "by_hand", "next_at"],
        sqlite_where=_PENDING,
        postgresql_where=_PENDING,
    )
