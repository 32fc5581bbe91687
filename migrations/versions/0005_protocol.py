"""How often a credential was sent, and answers that came too late to be installed."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempt", sa.Column("credential", sa.String(), nullable=False, server_default=""))
    op.add_column("attempt", sa.Column("sends", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("attempt", sa.Column("asked_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "ix_attempt_tenant_connection_id_from_generation",
        "attempt",
        ["tenant", "connection_id", "from_generation"],
    )
    op.create_table(
        "late_tokens",
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("attempt_id", sa.String(), nullable=False),
        sa.Column("connection_id", sa.String(), nullable=False),
        sa.Column("chain", sa.String(), nullable=False),
        sa.Column("from_generation", sa.Integer(), nullable=False),
        sa.Column("asked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("came_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sealed_tokens", sa.LargeBinary(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "attempt_id", name="pk_late_tokens"),
        sa.ForeignKeyConstraint(
            ["tenant", "connection_id"],
            ["connection.tenant", "connection.id"],
            name="fk_late_answer_connection",
        ),
    )
    op.create_index("ix_late_answer_tenant_connection_id", "late_tokens", ["tenant", "connection_id"])


def downgrade() -> None:
    """A store is never taken down: going back means restoring a backup."""
    raise RuntimeError("answers that wait for their verification would be lost")
