"""Grants that come in with their tokens, and grants on their way out."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("consent", sa.Column("kind", sa.String(), nullable=False, server_default="code"))
    op.add_column("consent", sa.Column("sealed_tokens", sa.LargeBinary(), nullable=True))
    _exports()


def downgrade() -> None:
    """A store is never taken down: going back means restoring a backup."""
    raise RuntimeError("imports that wait for a worker would be lost")


def _exports() -> None:
    op.create_table(
        "export",
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("recipient", sa.JSON(), nullable=False),
        sa.Column("filters", sa.JSON(), nullable=False),
        sa.Column("exported", sa.Integer(), nullable=False),
        sa.Column("skipped", sa.Integer(), nullable=False),
        sa.Column("pages", sa.Integer(), nullable=False),
        sa.Column("after", sa.String(), nullable=True),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("trace_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_export"),
    )
    op.create_index("ix_export_id", "export", ["id"], unique=True)
    op.create_table(
        "export_line",
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("export_id", sa.String(), nullable=False),
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("jwe", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "export_id", "seq", name="pk_export_line"),
        sa.ForeignKeyConstraint(
            ["tenant", "export_id"],
            ["export.tenant", "export.id"],
            name="fk_export_line_export",
            ondelete="CASCADE",
        ),
    )
