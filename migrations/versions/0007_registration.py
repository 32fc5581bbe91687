"""Clients that a server registered for us, and discovered metadata that is read again."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_MOMENTS = ("registration_sent_at", "client_secret_expires_at", "metadata_read_at")


def upgrade() -> None:
    for name in ("registration", "registration_url"):
        op.add_column("integration", sa.Column(name, sa.String(), nullable=True))
    for name in _MOMENTS:
        op.add_column("integration", sa.Column(name, sa.DateTime(timezone=True), nullable=True))
    for name in ("sealed_initial_token", "sealed_registration_token"):
        op.add_column("integration", sa.Column(name, sa.LargeBinary(), nullable=True))


def downgrade() -> None:
    """A store is never taken down: going back means restoring a backup."""
    raise RuntimeError("registrations at servers would be lost")
