"""Of which generation the access token was reported as refused. Reports of before are not known."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("connection", sa.Column("reported_generation", sa.Integer(), nullable=True))


def downgrade() -> None:
    """A store is never taken down: going back means restoring a backup."""
    raise RuntimeError("tokens that were reported as refused would be leased again")
