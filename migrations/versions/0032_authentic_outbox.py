"""Messages of the outbox have authenticators. `db upgrade` writes those of messages that wait."""

import sqlalchemy as sa
from alembic import op

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("outbox", sa.Column("mac", sa.String(), nullable=True))
    where = sa.text("last_error = 'authority_broken'")
    op.create_index("ix_outbox_refused", "outbox", ["id"], sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
