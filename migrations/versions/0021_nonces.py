"""The hash of the nonce that an id token has to repeat. Consents that are under way were sent without one."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("consent", sa.Column("nonce_hash", sa.String(), nullable=True))


def downgrade() -> None:
    """A store is never taken down: going back means restoring a backup."""
    raise RuntimeError("id tokens of other requests would be taken for ours")
