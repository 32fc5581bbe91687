"""Late repetitions of refresh tokens; until when a metadata document counts is authentic from now on.

The authenticators of before didn't cover `fresh_until`: without it a document is read again at its next use.
"""

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    late = sa.Column("late_replays", sa.Integer(), nullable=False, server_default="0")
    op.add_column("refresh_token", late)
    op.execute("UPDATE oauth_client SET fresh_until = NULL")


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
