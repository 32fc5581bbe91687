"""Authorization requests of clients: the tenant's rule, requests, subjects' sessions, remembered consents."""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _client_login()
    _authorization_request()
    _subject_session()
    _client_consent()
    op.add_column("person_login", sa.Column("authorize", sa.String(), nullable=True))
    op.add_column("person_login", sa.Column("subject", sa.String(), nullable=True))


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")


def _text(*names: str, null: bool = False) -> "list[sa.Column[object]]":
    return [sa.Column(name, sa.String(), nullable=null) for name in names]


def _moments(*names: str, null: bool = False) -> "list[sa.Column[object]]":
    return [sa.Column(name, sa.DateTime(timezone=True), nullable=null) for name in names]


def _json(*names: str) -> "list[sa.Column[object]]":
    return [sa.Column(name, sa.JSON(), nullable=False) for name in names]


def _flags(*names: str) -> "list[sa.Column[object]]":
    return [sa.Column(name, sa.Boolean(), nullable=False) for name in names]


def _table(name: str, *parts: sa.schema.SchemaItem) -> None:
    op.create_table(
        name,
        *_text("tenant", "id"),
        *parts,
        *_text("mac", null=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "id", name=f"pk_{name}"),
    )


def _client_login() -> None:
    _table(
        "client_login",
        *_text("app_id", "integration", "issuer", "claim"),
        *_json("domains"),
        *_flags("registration", "documents"),
        *_moments("changed_at"),
        sa.UniqueConstraint("tenant", name="uq_client_login_tenant"),
        sa.ForeignKeyConstraint(
            ["tenant", "app_id"], ["app.tenant", "app.id"], name="fk_client_login_app", ondelete="CASCADE"
        ),
    )


def _authorization_request() -> None:
    _table(
        "authorization_request",
        *_text("status", "client_id", "app_id", "subject", "resource"),
        *_text("connection_id", "rule", "state", "consent_id", null=True),
        *_json("scopes"),
        *_text("redirect_uri", "challenge", "session_id", "browser_hash"),
        *_moments("created_at", "expires_at"),
    )
    op.create_index("ix_authorization_request_id", "authorization_request", ["id"], unique=True)
    op.create_index("ix_authorization_request_expires_at", "authorization_request", ["expires_at"])


def _subject_session() -> None:
    _table(
        "subject_session",
        *_text("secret_hash", "rule", "subject"),
        *_json("person"),
        *_moments("created_at", "expires_at"),
        *_moments("ended_at", null=True),
    )
    op.create_index("ix_subject_session_secret_hash", "subject_session", ["secret_hash"], unique=True)
    op.create_index("ix_subject_session_expires_at", "subject_session", ["expires_at"])


def _client_consent() -> None:
    _table(
        "client_consent",
        *_text("client_id", "subject", "resource", "redirect_uri", "rule"),
        *_moments("created_at", "used_at"),
    )
    op.create_index("ix_client_consent_tenant_subject", "client_consent", ["tenant", "subject"])
    op.create_index("ix_client_consent_used_at", "client_consent", ["used_at"])
