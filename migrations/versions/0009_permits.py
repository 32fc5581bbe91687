"""Permits that deny, end, and name providers, connections and networks; the last use of each."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The defaults mean what permits of before say, and are not covered by their authenticators."""
    for name, default in (("effect", "allow"), ("mode", "enforce"), ("provider", "*")):
        op.add_column("permit", sa.Column(name, sa.String(), nullable=False, server_default=default))
    for name in ("connections", "sources", "scopes"):
        op.add_column("permit", sa.Column(name, sa.JSON(), nullable=True))
    exact = sa.Column("exact_scopes", sa.Boolean(), nullable=False, server_default=sa.false())
    op.add_column("permit", exact)
    op.add_column("permit", sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True))
    for name in ("purpose", "owner", "reason"):
        op.add_column("permit", sa.Column(name, sa.String(), nullable=False, server_default=""))
    op.create_table(
        "permit_use",
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("permit_id", sa.String(), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "permit_id", name="pk_permit_use"),
    )


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
