"""Whose account: bindings, accounts, keys that expire, approvals, replaced grants, sealed URL queries."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _bindings()
    _api_keys()
    _approval()
    _replaced_grants()
    _webhook_queries()
    _authenticators()
    _accounts()


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")


def _bindings() -> None:
    """Integrations of before bind their consents from now on; consents that are under way stay unbound."""
    op.add_column("integration", sa.Column("binding", sa.String(), nullable=False, server_default="app"))
    op.add_column("consent", sa.Column("binding", sa.String(), nullable=False, server_default="none"))
    for name in ("app_id", "challenge", "confirm_hash"):
        op.add_column("consent", sa.Column(name, sa.String(), nullable=True))
    for name in ("confirm_by", "confirmed_at"):
        op.add_column("consent", sa.Column(name, sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_consent_confirm_hash", "consent", ["confirm_hash"], unique=True)


def _api_keys() -> None:
    op.add_column("app_key", sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "app_key_use",
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "key_id", name="pk_app_key_use"),
    )


def _approval() -> None:
    op.create_table(
        "approval",
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("app_id", sa.String(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("command", sa.String(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("approved_by", sa.String(), nullable=True),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant", "app_id"], ["app.tenant", "app.id"], name="fk_approval_app", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_approval"),
    )


def _replaced_grants() -> None:
    op.create_table(
        "replaced_grant",
        *(sa.Column(name, sa.String(), nullable=False) for name in ("tenant", "id")),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("connection_id", "integration_id")),
        sa.Column("generation", sa.Integer(), nullable=True),
        sa.Column("account_hash", sa.String(), nullable=True),
        sa.Column("pending", sa.Boolean(), nullable=False),
        sa.Column("replaced_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sealed_tokens", sa.LargeBinary(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant", "connection_id"],
            ["connection.tenant", "connection.id"],
            name="fk_replaced_grant_connection",
        ),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_replaced_grant"),
    )
    op.create_index("ix_replaced_grant_tenant_connection_id", "replaced_grant", ["tenant", "connection_id"])
    op.create_index(
        "ix_replaced_grant_pending",
        "replaced_grant",
        ["tenant", "connection_id"],
        sqlite_where=sa.text("pending"),
        postgresql_where=sa.text("pending"),
    )


def _webhook_queries() -> None:
    """A URL of before keeps its query in the plain column until the webhook is put again."""
    op.add_column("webhook", sa.Column("sealed_query", sa.LargeBinary(), nullable=True))


def _authenticators() -> None:
    """Rows of before have none: `db upgrade` writes them, with the key file, after the schema."""
    for table in (
        "app",
        "app_key",
        "permit",
        "approval",
        "integration",
        "definition",
        "export",
        "connection",
        "consent",
        "audit_shard",
    ):
        op.add_column(table, sa.Column("mac", sa.String(), nullable=True))
    for table in ("integration", "connection_grant"):
        op.add_column(table, sa.Column("destination_mac", sa.String(), nullable=True))


def _accounts() -> None:
    op.add_column(
        "integration", sa.Column("on_reconnect", sa.String(), nullable=False, server_default="same")
    )
    op.add_column("connection", sa.Column("expected_account", sa.JSON(), nullable=True))
    op.add_column("consent", sa.Column("sealed_account", sa.LargeBinary(), nullable=True))
