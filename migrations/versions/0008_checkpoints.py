"""Checkpoints of the audit log: the key that signs them, the newest head of each tree, anchors."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)
# A tree that grows is marked, once until its next head is recorded: looking for such trees reads no other.
_MARK_SQLITE = """
CREATE TRIGGER audit_tree_grown AFTER UPDATE OF size ON audit_tree WHEN NOT OLD.grown
BEGIN UPDATE audit_tree SET grown = 1 WHERE tenant = NEW.tenant AND shard = NEW.shard; END
"""
_MARK_POSTGRESQL = (
    """
CREATE FUNCTION mark_grown() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN NEW.grown := true; RETURN NEW; END $$
""",
    """
CREATE TRIGGER audit_tree_grown BEFORE UPDATE OF size ON audit_tree FOR EACH ROW WHEN (NOT OLD.grown)
EXECUTE FUNCTION mark_grown()
""",
)


def upgrade() -> None:
    op.add_column("audit_tree", sa.Column("grown", sa.Boolean(), nullable=False, server_default=sa.true()))
    grown = sa.text("grown")
    op.create_index(
        "ix_audit_tree_grown",
        "audit_tree",
        ["tenant", "shard"],
        sqlite_where=grown,
        postgresql_where=grown,
    )
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    for statement in (_MARK_SQLITE,) if is_sqlite else _MARK_POSTGRESQL:
        op.execute(statement)
    _create_tables()


def _create_tables() -> None:
    op.create_table(
        "audit_log_key",
        *_tenant_columns("id", sa.String()),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("public", sa.LargeBinary(), nullable=False),
        sa.Column("sealed_seed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_audit_log_key"),
    )
    op.create_table(
        "audit_head",
        *_tenant_columns("shard", sa.String()),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("place", sa.BigInteger(), nullable=False),
        *_signed_columns(),
        sa.PrimaryKeyConstraint("tenant", "shard", name="pk_audit_head"),
    )
    op.create_table(
        "audit_checkpoint",
        *_tenant_columns("size", sa.BigInteger()),
        *_signed_columns(),
        sa.Column("at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "size", name="pk_audit_checkpoint"),
    )
    op.create_table(
        "audit_anchor",
        *_tenant_columns("id", sa.String()),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("evidence", sa.LargeBinary(), nullable=False),
        sa.Column("problem", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_audit_anchor"),
    )


def _tenant_columns(name: str, kind: "sa.types.TypeEngine[Any]") -> "tuple[sa.Column[Any], ...]":
    return (
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column(name, kind, nullable=False),
    )


def _signed_columns() -> "tuple[sa.Column[Any], ...]":
    return (
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("cose", sa.LargeBinary(), nullable=False),
    )


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
