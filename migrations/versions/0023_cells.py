"""Cells: where a tenant stands that is moved to another one, and the moves."""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("phase", "moved_to"):
        op.add_column("tenant_standing", sa.Column(name, sa.String(), nullable=False, server_default=""))
    texts = ("tenant", "id", "side", "peer", "state", "secret_hash", "by", "root", "log", "problem")
    moments = {"created_at": False, "expires_at": False}
    moments |= dict.fromkeys(("paused_at", "closed_at", "ended_at"), True)
    op.create_table(
        "tenant_move",
        *(sa.Column(name, sa.String(), nullable=False) for name in texts),
        sa.Column("revision", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.DateTime(timezone=True), nullable=null) for name, null in moments.items()),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("sealed_access", sa.LargeBinary(), nullable=True),
        sa.Column("mac", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_tenant_move"),
    )


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
