"""Evergrant as the authorization server of its gateways: clients, codes, families of tokens."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

_AUTHORIZATION = ("client_id", "app_id", "subject", "resource")


def _text(*names: str, nullable: bool = False) -> "list[sa.Column[object]]":
    return [sa.Column(name, sa.String(), nullable=nullable) for name in names]


def _moment(*names: str, nullable: bool = False) -> "list[sa.Column[object]]":
    return [sa.Column(name, sa.DateTime(timezone=True), nullable=nullable) for name in names]


def _json(*names: str, nullable: bool = False) -> "list[sa.Column[object]]":
    return [sa.Column(name, sa.JSON(), nullable=nullable) for name in names]


def _table(name: str, *parts: sa.schema.SchemaItem) -> None:
    op.create_table(
        name,
        *_text("tenant"),
        sa.Column("revision", sa.Integer(), nullable=False),
        *_text("id"),
        *parts,
        sa.PrimaryKeyConstraint("tenant", "id", name=f"pk_{name}"),
    )


def _index(table: str, *names: str, unique: bool = False) -> None:
    op.create_index(f"ix_{table}_{'_'.join(names)}", table, list(names), unique=unique)


def _of(table: str, other: str, column: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["tenant", column], [f"{other}.tenant", f"{other}.id"], name=f"fk_{table}_{other}", ondelete="CASCADE"
    )


def upgrade() -> None:
    _table(
        "oauth_client",
        *_text("client_id", "kind", "name"),
        *_json("redirect_uris"),
        *_text("application_type", "auth_method"),
        *_json("jwks", nullable=True),
        *_text("jwks_uri", nullable=True),
        *_json("scopes", nullable=True),
        *_text("client_uri", nullable=True),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        *_moment("created_at"),
        *_moment("fresh_until", "used_at", nullable=True),
        *_text("mac", nullable=True),
    )
    _index("oauth_client", "client_id", unique=True)
    _index("oauth_client", "used_at")
    _table(
        "authorization_code",
        *_text(*_AUTHORIZATION),
        *_text("connection_id", nullable=True),
        *_json("scopes"),
        *_text("rule", nullable=True),
        *_text("code_hash", "redirect_uri", "challenge"),
        *_moment("created_at", "expires_at"),
        *_moment("used_at", nullable=True),
        *_text("family_id", "mac", nullable=True),
        _of("authorization_code", "app", "app_id"),
    )
    _index("authorization_code", "code_hash", unique=True)
    _index("authorization_code", "tenant", "app_id")
    _index("authorization_code", "expires_at")
    _table(
        "token_family",
        *_text(*_AUTHORIZATION),
        *_text("connection_id", nullable=True),
        *_json("scopes"),
        *_text("rule", nullable=True),
        sa.Column("bound", sa.Boolean(), nullable=False),
        *_moment("created_at", "used_at", "expires_at"),
        *_moment("ended_at", nullable=True),
        *_text("end", nullable=True),
        sa.Column("replays", sa.Integer(), nullable=False),
        *_text("mac", nullable=True),
        _of("token_family", "app", "app_id"),
    )
    for name in ("app_id", "client_id", "subject"):
        _index("token_family", "tenant", name)
    _index("token_family", "expires_at")
    _table(
        "refresh_token",
        *_text("family_id", "secret_hash"),
        *_moment("created_at"),
        *_moment("rotated_at", nullable=True),
        *_text("successor_id", nullable=True),
        sa.Column("replays", sa.Integer(), nullable=False),
        sa.Column("sealed_successor", sa.LargeBinary(), nullable=True),
        *_text("mac", nullable=True),
        _of("refresh_token", "token_family", "family_id"),
    )
    _index("refresh_token", "id", unique=True)
    _index("refresh_token", "tenant", "family_id")
    _table(
        "access_token",
        *_text("family_id", "secret_hash", "resource"),
        *_json("scopes"),
        *_moment("created_at", "expires_at"),
        _of("access_token", "token_family", "family_id"),
    )
    _index("access_token", "id", unique=True)
    _index("access_token", "tenant", "family_id")
    _index("access_token", "expires_at")


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
