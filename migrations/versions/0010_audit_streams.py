"""Streams of the audit log: receivers, how far each is, and its cursors over the log's shards."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit_stream",
        *_key("id"),
        *_text("name", "url", "format"),
        *_sealed("sealed_query", "sealed_headers", null=True),
        *_sealed("sealed_secret"),
        sa.Column("header_names", sa.JSON(), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        *_times("secret_changed_at", "created_at", "changed_at"),
        *_text("mac", null=True),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_audit_stream"),
        sa.UniqueConstraint("tenant", "name", name="uq_audit_stream_tenant_name"),
    )
    op.create_table(
        "audit_stream_state",
        *_key("id"),
        *_text("claimed_by", "problem", null=True),
        *_times("claimed_until", "failing_since", "paused_until", "sent_at", "oldest_at", null=True),
        sa.Column("batch", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("response_status", sa.Integer(), nullable=True),
        *_numbers("sent", "unsent"),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_audit_stream_state"),
    )
    op.create_table(
        "audit_stream_cursor",
        *_key("stream_id", "shard"),
        *_numbers("seq"),
        *_times("moved_at"),
        sa.PrimaryKeyConstraint("tenant", "stream_id", "shard", name="pk_audit_stream_cursor"),
    )


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")


def _key(*names: str) -> "list[sa.Column[object]]":
    revision = sa.Column("revision", sa.Integer(), nullable=False)
    return [*_text("tenant", *names), revision]


def _text(*names: str, null: bool = False) -> "list[sa.Column[object]]":
    return [sa.Column(name, sa.String(), nullable=null) for name in names]


def _sealed(*names: str, null: bool = False) -> "list[sa.Column[object]]":
    return [sa.Column(name, sa.LargeBinary(), nullable=null) for name in names]


def _times(*names: str, null: bool = False) -> "list[sa.Column[object]]":
    return [sa.Column(name, sa.DateTime(timezone=True), nullable=null) for name in names]


def _numbers(*names: str) -> "list[sa.Column[object]]":
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return [sa.Column(name, kind, nullable=False) for name in names]
