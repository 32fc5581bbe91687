"""In whose name a source's token is exchanged. Of connections of before it isn't known: an app asks anew."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("connection", sa.Column("source_app", sa.String(), nullable=True))
    known = sa.text("source_app IS NOT NULL")
    op.create_index(
        "ix_connection_source_app",
        "connection",
        ["tenant", "source_app"],
        sqlite_where=known,
        postgresql_where=known,
    )


def downgrade() -> None:
    """A store is never taken down: going back means restoring a backup."""
    raise RuntimeError("in whose name tokens are exchanged would be forgotten")
