"""Signatures of more tables, and an index of the ends that the audit log tells.

The rows of before are signed by `db upgrade` (`cli.authority`).
"""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

_SIGNED = (
    *("access_token", "app_token", "connection_grant", "event", "event_receiver", "key_session", "webhook"),
)

_ENDS = (
    "action IN ("
    "'app.deleted', 'app.put', 'app.agent_stopped', 'app.denies_changed', "
    "'approval.requested', 'approval.used', 'call_approval.denied', 'call_approval.expired', "
    "'call_approval.used', 'credential.deleted', 'delegation.stopped', 'key.revoked', "
    "'permit.deleted', 'resource_token.revoked', 'connection.revocation_requested', "
    "'connection.revoked', 'session.ended', 'tenant.disabled', 'tenant.enabled', "
    "'token_family.ended', 'token_family.replayed', 'admin_login.deleted', "
    "'client_login.deleted', 'delegation_rule.deleted', 'trusted_issuer.deleted'"
    ")"
)


def upgrade() -> None:
    for table in _SIGNED:
        op.add_column(table, sa.Column("mac", sa.String(), nullable=True))
    where = sa.text(_ENDS)
    op.create_index("ix_audit_end", "audit", ["tenant", "object"], sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
