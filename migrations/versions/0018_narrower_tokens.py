"""Which generation's access token a grant still has, where later refreshes brought narrower ones."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("connection_grant", sa.Column("access_generation", sa.Integer(), nullable=True))


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
