"""The hosts at which each grant was made, and those of its integration: no secret is sent to another one.

`db upgrade` fills them, since their authenticators need the workers' key.
"""

import sqlalchemy as sa
from alembic import op

revision = "0033"
down_revision = "0032"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("integration", "connection_grant"):
        op.add_column(table, sa.Column("pinned_hosts", sa.String(), nullable=True))


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
