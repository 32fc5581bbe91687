"""Campaigns: what each does, and of its connections their use, their wave and their reminders."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("leases", "wave", "reminders"):
        column = sa.Column(name, sa.Integer(), nullable=False, server_default="0")
        op.add_column("incident_connection", column)
    op.create_table(
        "campaign",
        *(sa.Column(name, sa.String(), nullable=False) for name in ("tenant", "id", "older", "newer")),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("newer_name", "end")),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in ("revision", "wave_size", "wave")),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in ("to_ask", "asked", "reminded")),
        sa.Column("every_s", sa.Float(), nullable=False),
        sa.Column("remind_s", sa.JSON(), nullable=False),
        sa.Column("wave_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("mac", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_campaign"),
    )


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
