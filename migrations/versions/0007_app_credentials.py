"""Credentials of apps beside API keys, the access tokens that they get, and assertions that were used up."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "app_credential",
        *_text("tenant", "id", "app_id", "name", "method"),
        sa.Column("parameters", sa.JSON(), nullable=False),
        *_time("created_at"),
        sa.Column("mac", sa.String(), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        _of_app("app_credential"),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_app_credential"),
        sa.UniqueConstraint("tenant", "app_id", "name", name="uq_app_credential_tenant_app_id_name"),
    )
    op.create_table(
        "app_token",
        *_text("tenant", "id", "app_id", "credential_id", "method", "secret_hash"),
        sa.Column("credential_revision", sa.Integer(), nullable=False),
        sa.Column("confirmation", sa.JSON(), nullable=True),
        *_time("created_at", "expires_at"),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant", "credential_id"],
            ["app_credential.tenant", "app_credential.id"],
            name="fk_app_token_app_credential",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_app_token"),
    )
    op.create_index("ix_app_token_id", "app_token", ["id"], unique=True)
    op.create_index("ix_app_token_tenant_credential_id", "app_token", ["tenant", "credential_id"])
    op.create_index("ix_app_token_expires_at", "app_token", ["expires_at"])
    op.create_table(
        "app_assertion",
        *_text("tenant", "app_id", "jti_hash"),
        *_time("expires_at"),
        sa.Column("revision", sa.Integer(), nullable=False),
        _of_app("app_assertion"),
        sa.PrimaryKeyConstraint("tenant", "app_id", "jti_hash", name="pk_app_assertion"),
    )
    op.create_index("ix_app_assertion_expires_at", "app_assertion", ["expires_at"])


def _text(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String(), nullable=False) for name in names]


def _time(*names: str) -> list[sa.Column[sa.DateTime]]:
    return [sa.Column(name, sa.DateTime(timezone=True), nullable=False) for name in names]


def _of_app(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["tenant", "app_id"], ["app.tenant", "app.id"], name=f"fk_{table}_app", ondelete="CASCADE"
    )


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
