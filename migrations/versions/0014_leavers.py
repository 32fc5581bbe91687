"""Leavers: whose offboarding an incident is, their rule, the tenant's directory, and held connections."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("connection", sa.Column("held_by", sa.String(), nullable=True))
    for name in ("person", "held_until", "undone_at"):
        kind = sa.String() if name == "person" else sa.DateTime(timezone=True)
        op.add_column("incident", sa.Column(name, kind, nullable=True))
    op.add_column("incident", sa.Column("beside", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("incident_connection", sa.Column("matched", sa.String(), nullable=True))
    open_ones = sa.text("finished_at IS NULL")
    op.create_index(
        "ix_incident_person",
        "incident",
        ["tenant", "person"],
        sqlite_where=open_ones,
        postgresql_where=open_ones,
    )
    _tables()


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")


def _tables() -> None:
    op.create_table(
        "offboarding_rule",
        *_text("tenant", "id"),
        *_text("subject_from", "sub_from", "issuer", "sponsor", "team_owner", "mac", null=True),
        sa.Column("grace_s", sa.Float(), nullable=True),
        sa.Column("team_labels", sa.JSON(), nullable=False),
        sa.Column("dry_run", sa.Boolean(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_offboarding_rule"),
        sa.UniqueConstraint("tenant", name="uq_offboarding_rule_tenant"),
    )
    op.create_table(
        "directory_user",
        *_text("tenant", "id", "user_name", "user_key"),
        *_text("external_id", "display_name", "subject", "mac", null=True),
        sa.Column("emails", sa.JSON(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_directory_user"),
        sa.UniqueConstraint("tenant", "user_key", name="uq_directory_user_tenant_user_key"),
    )
    for column in ("subject", "external_id"):
        op.create_index(f"ix_directory_user_{column}", "directory_user", ["tenant", column])
    op.create_table(
        "leaver",
        *_text("tenant", "id", "subject"),
        *_text("issuer", "sub", "user_id", "mac", null=True),
        sa.Column("matches", sa.JSON(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_leaver"),
    )
    op.create_index("ix_leaver_subject", "leaver", ["tenant", "subject"])


def _text(*names: str, null: bool = False) -> "list[sa.Column[object]]":
    return [sa.Column(name, sa.String(), nullable=null) for name in names]
