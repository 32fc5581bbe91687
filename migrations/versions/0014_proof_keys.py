"""Keys that tokens are bound to (RFC 9449), and which integrations want that."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("integration", sa.Column("dpop", sa.Boolean(), nullable=True))
    op.create_table(
        "proof_key",
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("connection_id", sa.String(), nullable=False),
        sa.Column("thumbprint", sa.String(), nullable=False),
        sa.Column("sealed_key", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "connection_id", name="pk_proof_key"),
        sa.ForeignKeyConstraint(
            ["tenant", "connection_id"],
            ["connection.tenant", "connection.id"],
            name="fk_proof_key_connection",
        ),
    )


def downgrade() -> None:
    """A store is never taken down: going back means restoring a backup."""
    raise RuntimeError("tokens that are bound to these keys would open nothing")
