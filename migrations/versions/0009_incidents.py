"""Incidents, and how far each of their connections is."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "incident",
        *_text("tenant", "id", "kind", "reason", "by", "state", "after", "digest", "header"),
        *_text("summary", "note"),
        *_text("integration", "app", "app_id", "mac", null=True),
        *_times("created_at", "waits_until"),
        *_times("since", "until", "finished_at", null=True),
        *_numbers("selected", "ended", "idle", "lines", "revision"),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("outcomes", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_incident"),
    )
    open_ones = sa.text("finished_at IS NULL")
    op.create_index(
        "ix_incident_unfinished",
        "incident",
        ["created_at"],
        sqlite_where=open_ones,
        postgresql_where=open_ones,
    )
    op.create_table(
        "incident_connection",
        *_text("tenant", "incident_id", "connection_id", "integration", "provider", "step", "line"),
        *_text("outcome", null=True),
        *_times("used_at", "told_at", null=True),
        *_numbers("generation", "revision"),
        sa.PrimaryKeyConstraint("tenant", "incident_id", "connection_id", name="pk_incident_connection"),
    )
    steps = ["tenant", "incident_id", "step", "integration", "used_at"]
    op.create_index("ix_incident_connection_step", "incident_connection", steps)
    op.create_index("ix_incident_connection_connection", "incident_connection", ["tenant", "connection_id"])


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")


def _text(*names: str, null: bool = False) -> "list[sa.Column[object]]":
    return [sa.Column(name, sa.String(), nullable=null) for name in names]


def _times(*names: str, null: bool = False) -> "list[sa.Column[object]]":
    return [sa.Column(name, sa.DateTime(timezone=True), nullable=null) for name in names]


def _numbers(*names: str) -> "list[sa.Column[object]]":
    return [sa.Column(name, sa.Integer(), nullable=False) for name in names]
