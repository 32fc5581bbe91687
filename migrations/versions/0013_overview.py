"""Connections by urgency, or by the beginning of a subject; bulk orders; counts of records by the hour."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_UNWELL = "state = 'active' AND (failures > 0 OR follow_up = 'choosing')"
_BYTEWISE = {"subject": "text_pattern_ops", "label": "text_pattern_ops"}


def upgrade() -> None:
    op.create_index("ix_connection_state", "connection", ["tenant", "state", "integration", "id"])
    _partial("ix_connection_unwell", "connection", ["tenant", "state", "integration", "id"], _UNWELL)
    op.drop_index("ix_connection_tenant_subject", "connection")
    names = ["tenant", "subject", "id"]
    subject = {"subject": _BYTEWISE["subject"]}
    op.create_index("ix_connection_tenant_subject", "connection", names, postgresql_ops=subject)
    label = {"label": _BYTEWISE["label"]}
    labelled = ["tenant", "label", "id"]
    _partial("ix_connection_label", "connection", labelled, "label <> 'default'", postgresql_ops=label)
    ends = "refresh_expires_at IS NOT NULL"
    _partial("ix_connection_grant_ends", "connection_grant", ["tenant", "refresh_expires_at"], ends)
    fixed = "slot = 'main' AND NOT refreshable"
    _partial("ix_connection_grant_fixed", "connection_grant", ["tenant", "expires_at"], fixed)
    _partial("ix_permit_expires", "permit", ["tenant", "expires_at"], "expires_at IS NOT NULL")
    _audit_hour()
    _bulk_order()


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")


def _audit_hour() -> None:
    op.create_table(
        "audit_hour",
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("hour", sa.DateTime(timezone=True), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "hour", "action", name="pk_audit_hour"),
    )
    op.create_index("ix_audit_hour_hour", "audit_hour", ["hour"])


def _bulk_order() -> None:
    op.create_table(
        "bulk_order",
        *(sa.Column(name, sa.String(), nullable=False) for name in ("tenant", "id", "action", "reason")),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("by", "state", "after")),
        *(sa.Column(name, sa.String(), nullable=True) for name in ("label", "mac")),
        *(sa.Column(name, sa.JSON(), nullable=False) for name in ("filters", "outcomes")),
        *(
            sa.Column(name, sa.Integer(), nullable=False)
            for name in ("selected", "ended", "idle", "revision")
        ),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("waits_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_bulk_order"),
    )
    _partial("ix_bulk_order_unfinished", "bulk_order", ["created_at"], "finished_at IS NULL")


def _partial(name: str, table: str, columns: "list[str]", where: str, **options: "dict[str, str]") -> None:
    condition = sa.text(where)
    op.create_index(name, table, columns, sqlite_where=condition, postgresql_where=condition, **options)
