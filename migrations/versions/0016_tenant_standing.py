"""Whether each tenant is served. `db upgrade` gives the rows of the tenants of before their authenticators.

On PostgreSQL a change waits for the leases that are being committed, as one of an app does (0008).
"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_TENANTS = " UNION ".join(f"SELECT tenant FROM {it}" for it in ("app", "integration", "person_session"))
_OF_BEFORE = (
    "INSERT INTO tenant_standing (tenant, id, revision, disabled, reason)"
    f" SELECT tenant, tenant, 1, false, '' FROM ({_TENANTS}) AS known"
)


def upgrade() -> None:
    op.create_table(
        "tenant_standing",
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("mac", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_tenant_standing"),
    )
    op.execute(_OF_BEFORE)
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE TRIGGER exclude_leases BEFORE UPDATE OR DELETE ON tenant_standing"
            " FOR EACH ROW EXECUTE FUNCTION exclude_leases()"
        )


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
