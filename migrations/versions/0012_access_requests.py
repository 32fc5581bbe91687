"""Requests for access; and an index of the audit log's records about who may do what."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_WORDS = "access app approval credential integration issuer key permit person role session"
_ACCESS = sa.text("({})".format(" OR ".join(f"action LIKE '{word}.%'" for word in _WORDS.split())))
_WAITS = sa.text("next_at IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "access_request",
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("app_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("permit_name", sa.String(), nullable=False),
        sa.Column("permit", sa.JSON(), nullable=False),
        sa.Column("lifetime_s", sa.Float(), nullable=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("requested_by", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decide_by", sa.DateTime(timezone=True), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reminders", sa.Integer(), nullable=False),
        sa.Column("decided_by", sa.String(), nullable=True),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("note", sa.String(), nullable=True),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("mac", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant", "app_id"], ["app.tenant", "app.id"], name="fk_access_request_app", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_access_request"),
    )
    op.create_index("ix_access_request_tenant_app_id_state", "access_request", ["tenant", "app_id", "state"])
    op.create_index(
        "ix_access_request_next",
        "access_request",
        ["next_at"],
        sqlite_where=_WAITS,
        postgresql_where=_WAITS,
    )
    op.create_index(
        "ix_audit_access", "audit", ["tenant", "at"], sqlite_where=_ACCESS, postgresql_where=_ACCESS
    )


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
