"""Two regions: which one has the authority to serve, and whose audit records wait for the other."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "region",
        *(sa.Column(name, sa.String(), nullable=False) for name in ("tenant", "id", "name", "taken_from")),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in ("revision", "epoch")),
        sa.Column("standalone", sa.Boolean(), nullable=False),
        sa.Column("authority_s", sa.Float(), nullable=False),
        *(sa.Column(name, moment, nullable=True) for name in ("valid_until", "confirmed_at", "taken_at")),
        sa.Column("changed_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_region"),
    )
    op.create_table(
        "tenant_durability",
        *(sa.Column(name, sa.String(), nullable=False) for name in ("tenant", "id", "audit_durability")),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_tenant_durability"),
    )


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
