"""Delegations: who acts for whom, which tokens of people begin one, and how many a stop has ended.

On PostgreSQL a change of one waits for the leases that are being committed, as in migration 0008.
"""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

_TRIGGER = """
CREATE TRIGGER exclude_leases BEFORE UPDATE OR DELETE ON {table}
FOR EACH ROW EXECUTE FUNCTION exclude_leases()
"""


def _moment(name: str, *, nullable: bool = True) -> "sa.Column[object]":
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _text(name: str, *, nullable: bool = False) -> "sa.Column[object]":
    return sa.Column(name, sa.String(), nullable=nullable)


def _json(name: str, *, nullable: bool = False) -> "sa.Column[object]":
    return sa.Column(name, sa.JSON(), nullable=nullable)


def _number(name: str, *, nullable: bool = False) -> "sa.Column[object]":
    return sa.Column(name, sa.Integer(), nullable=nullable)


def upgrade() -> None:
    ended = sa.Column("delegations_ended", sa.Integer(), nullable=False, server_default="0")
    op.add_column("agent_stop", ended)
    op.create_table(
        "delegation",
        *(_text("tenant"), _number("revision"), _text("id"), _text("root_id"), _text("place")),
        *(_json("path"), _text("app_id"), _text("key_id"), _text("method")),
        *(_number("credential_revision", nullable=True), _json("confirmation", nullable=True)),
        *(_text("subject"), _json("reach"), _text("may_act", nullable=True), _text("proof")),
        *(_text("rule_id", nullable=True), _number("rule_revision", nullable=True), _text("secret_hash")),
        *(_moment(name, nullable=False) for name in ("created_at", "expires_at")),
        *(_moment("stopped_at"), _text("stopped_by", nullable=True), _text("stop_reason", nullable=True)),
        _text("mac", nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant", "app_id"], ["app.tenant", "app.id"], name="fk_delegation_app", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_delegation"),
    )
    op.create_index("ix_delegation_id", "delegation", ["id"], unique=True)
    op.create_index("ix_delegation_tenant_root_id", "delegation", ["tenant", "root_id"])
    op.create_index("ix_delegation_tenant_app_id", "delegation", ["tenant", "app_id"])
    op.create_index("ix_delegation_expires_at", "delegation", ["expires_at"])
    op.create_table(
        "delegation_rule",
        *(_text("tenant"), _number("revision"), _text("id")),
        *(_text(name) for name in ("name", "issuer_id", "token_type", "audience", "claim")),
        *(_json("domains"), sa.Column("may_act", sa.Boolean(), nullable=False)),
        *(_json("actors"), _json("clients")),
        *(_moment(name, nullable=False) for name in ("created_at", "changed_at")),
        _text("mac", nullable=True),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_delegation_rule"),
        sa.UniqueConstraint("tenant", "name", name="uq_delegation_rule_tenant_name"),
    )
    op.create_index("ix_delegation_rule_id", "delegation_rule", ["id"], unique=True)
    op.create_index("ix_delegation_rule_tenant_issuer_id", "delegation_rule", ["tenant", "issuer_id"])
    op.create_table(
        "used_subject_token",
        *(_text("tenant"), _number("revision"), _text("jti_hash"), _moment("expires_at", nullable=False)),
        sa.PrimaryKeyConstraint("tenant", "jti_hash", name="pk_used_subject_token"),
    )
    op.create_index("ix_used_subject_token_expires_at", "used_subject_token", ["expires_at"])
    if op.get_bind().dialect.name == "postgresql":
        for table in ("delegation", "delegation_rule"):
            op.execute(_TRIGGER.format(table=table))


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
