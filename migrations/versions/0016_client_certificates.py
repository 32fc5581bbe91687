"""Certificates of ours at providers, for mutual TLS."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("integration", sa.Column("sealed_client_certificate", sa.LargeBinary(), nullable=True))
    op.add_column(
        "integration", sa.Column("client_certificate_expires_at", sa.DateTime(timezone=True), nullable=True)
    )


def downgrade() -> None:
    """A store is never taken down: going back means restoring a backup."""
    raise RuntimeError("certificates of integrations would be lost")
