"""On PostgreSQL a change of an app or a connection waits for the leases that are being committed.

The lease ledger holds shared advisory locks until its commit (`audit.lease_batch`); a change takes the
exclusive one here, so that a process of the earlier version does so too. New lock requests queue behind a
waiting exclusive one, which row locks don't do: leases without a pause can't keep a change waiting.
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_FUNCTION = """
CREATE FUNCTION exclude_leases() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(OLD.id, 0));
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    RETURN NEW;
END
$$
"""
_TRIGGER = """
CREATE TRIGGER exclude_leases BEFORE UPDATE OR DELETE ON {table}
FOR EACH ROW EXECUTE FUNCTION exclude_leases()
"""


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return  # on SQLite one transaction writes at a time
    op.execute(_FUNCTION)
    for table in ("app", "connection"):
        op.execute(_TRIGGER.format(table=table))


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
