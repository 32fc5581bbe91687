"""Agents: who answers for one and until when; their calls that people approve, and orders to stop them."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

_WAITS = sa.text("next_at IS NOT NULL")
_UNFINISHED = sa.text("finished_at IS NULL")


def _moment(name: str, *, nullable: bool = True) -> "sa.Column[object]":
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _text(name: str, *, nullable: bool = False) -> "sa.Column[object]":
    return sa.Column(name, sa.String(), nullable=nullable)


def upgrade() -> None:
    op.add_column("app", sa.Column("sponsor", sa.String(), nullable=True))
    op.add_column("app", sa.Column("sponsor_app", sa.String(), nullable=True))
    op.add_column("app", sa.Column("purpose", sa.String(), nullable=False, server_default=""))
    op.add_column("app", sa.Column("ends_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "call_approval",
        *(_text("tenant"), sa.Column("revision", sa.Integer(), nullable=False), _text("id")),
        *(_text(name) for name in ("app_id", "connection_id", "call_hash")),
        sa.Column("round", sa.Integer(), nullable=False),
        *(_text(name) for name in ("name", "reason", "requested_by")),
        *(_moment(name, nullable=False) for name in ("created_at", "decide_by")),
        _text("state"),
        sa.Column("reminders", sa.Integer(), nullable=False),
        _moment("escalated_at"),
        _text("decided_by", nullable=True),
        _moment("decided_at"),
        _text("note", nullable=True),
        *(_moment(name) for name in ("use_by", "used_at", "next_at")),
        sa.Column("sealed_call", sa.LargeBinary(), nullable=True),
        _text("mac", nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant", "app_id"], ["app.tenant", "app.id"], name="fk_call_approval_app", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_call_approval"),
        sa.UniqueConstraint("tenant", "call_hash", "round", name="uq_call_approval_tenant_call_hash_round"),
    )
    op.create_index("ix_call_approval_tenant_app_id_state", "call_approval", ["tenant", "app_id", "state"])
    op.create_index(
        "ix_call_approval_next", "call_approval", ["next_at"], sqlite_where=_WAITS, postgresql_where=_WAITS
    )
    op.create_table(
        "agent_stop",
        *(_text("tenant"), sa.Column("revision", sa.Integer(), nullable=False), _text("id")),
        *(_text(name) for name in ("app_id", "reason", "by")),
        sa.Column("revoke_connections", sa.Boolean(), nullable=False),
        _moment("created_at", nullable=False),
        *(
            sa.Column(name, sa.Integer(), nullable=False)
            for name in ("approvals_closed", "connections_revoked", "connections_kept")
        ),
        _text("after"),
        _moment("finished_at"),
        _text("mac", nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant", "app_id"], ["app.tenant", "app.id"], name="fk_agent_stop_app", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_agent_stop"),
    )
    op.create_index(
        "ix_agent_stop_tenant_app_id_created_at", "agent_stop", ["tenant", "app_id", "created_at"]
    )
    op.create_index(
        "ix_agent_stop_unfinished",
        "agent_stop",
        ["created_at"],
        sqlite_where=_UNFINISHED,
        postgresql_where=_UNFINISHED,
    )


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
