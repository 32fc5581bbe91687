"""Erasures and legal holds; what an audit record says can be erased, and rows are found by what is erased."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_INDEXES = (
    ("ix_connection_tenant_subject", "connection", ("tenant", "subject"), None),
    (
        "ix_connection_ended",
        "connection",
        ("changed_at", "id"),
        "state IN ('consent_expired', 'denied', 'revoked')",
    ),
    ("ix_event_connection", "event", ("tenant", "connection_id"), "connection_id IS NOT NULL"),
    ("ix_call_approval_connection", "call_approval", ("tenant", "connection_id"), None),
    ("ix_consent_expires_at_id", "consent", ("expires_at", "id"), None),
    ("ix_history_exported_at", "history", ("exported_at",), None),
    ("ix_lease_use_connection", "lease_use", ("tenant", "connection_id"), None),
    ("ix_outbox_done", "outbox", ("target",), "delivered_at IS NOT NULL"),
    ("ix_erasure_unfinished", "erasure", ("created_at",), "finished_at IS NULL"),
    ("ix_legal_hold_active", "legal_hold", ("tenant",), "ended_at IS NULL"),
)


def upgrade() -> None:
    _order("erasure", *_facts_of_erasures())
    _order("legal_hold", *_facts_of_holds())
    op.create_table(
        "audit_pruning",
        *_text("tenant", "shard"),
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        *_numbers("revision"),
        sa.PrimaryKeyConstraint("tenant", "shard", name="pk_audit_pruning"),
    )
    op.add_column("audit", sa.Column("erased_mac", sa.String(), nullable=True))
    for name, table, columns, where in _INDEXES:
        condition = None if where is None else sa.text(where)
        op.create_index(name, table, list(columns), sqlite_where=condition, postgresql_where=condition)


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")


def _order(name: str, *facts: "sa.Column[object]") -> None:
    named = _text("tenant", "id", "kind", "target", "target_hash", "reason", "by")
    primary = sa.PrimaryKeyConstraint("tenant", "id", name=f"pk_{name}")
    op.create_table(
        name, *named, *_times("created_at"), *facts, *_text("mac", null=True), *_numbers("revision"), primary
    )


def _facts_of_erasures() -> "list[sa.Column[object]]":
    counts = _numbers("connections", "unconfirmed", "keys", "rows", "records", "waiting")
    places = [*_text("state", "shard", "after"), *_text("hold_id", null=True)]
    return [*_times("waits_until"), *_times("finished_at", null=True), *counts, *places]


def _facts_of_holds() -> "list[sa.Column[object]]":
    return [*_times("until", "ended_at", null=True), *_text("ended_by", "end_reason", null=True)]


def _text(*names: str, null: bool = False) -> "list[sa.Column[object]]":
    return [sa.Column(name, sa.String(), nullable=null) for name in names]


def _times(*names: str, null: bool = False) -> "list[sa.Column[object]]":
    return [sa.Column(name, sa.DateTime(timezone=True), nullable=null) for name in names]


def _numbers(*names: str) -> "list[sa.Column[object]]":
    return [sa.Column(name, sa.Integer(), nullable=False) for name in names]
