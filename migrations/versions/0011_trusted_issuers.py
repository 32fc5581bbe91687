"""Issuers of workload tokens that tenants trust."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "trusted_issuer",
        *(
            sa.Column(name, sa.String(), nullable=False)
            for name in ("tenant", "id", "name", "kind", "issuer")
        ),
        sa.Column("jwks_uri", sa.String(), nullable=True),
        sa.Column("keys", sa.JSON(), nullable=True),
        *(
            _time(name, null=True)
            for name in ("keys_at", "keys_tried_at", "keys_next_at", "keys_requested_at")
        ),
        sa.Column("keys_problem", sa.String(), nullable=True),
        *(_time(name, null=False) for name in ("created_at", "changed_at")),
        sa.Column("mac", sa.String(), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_trusted_issuer"),
        sa.UniqueConstraint("tenant", "name", name="uq_trusted_issuer_tenant_name"),
        sa.UniqueConstraint("tenant", "issuer", name="uq_trusted_issuer_tenant_issuer"),
    )
    op.create_index("ix_trusted_issuer_keys_next_at", "trusted_issuer", ["keys_next_at"])


def _time(name: str, *, null: bool) -> sa.Column[sa.DateTime]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=null)


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
