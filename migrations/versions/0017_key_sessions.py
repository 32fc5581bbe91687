"""The console's sessions of API keys that were pasted once."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "key_session",
        *[sa.Column(name, sa.String(), nullable=False) for name in ("tenant", "id", "key_id", "secret_hash")],
        *[
            sa.Column(name, sa.DateTime(timezone=True), nullable=False)
            for name in ("created_at", "expires_at")
        ],
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant", "key_id"],
            ["app_key.tenant", "app_key.id"],
            name="fk_key_session_app_key",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_key_session"),
    )
    op.create_index("ix_key_session_id", "key_session", ["id"], unique=True)
    op.create_index("ix_key_session_tenant_key_id", "key_session", ["tenant", "key_id"])
    op.create_index("ix_key_session_expires_at", "key_session", ["expires_at"])


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
