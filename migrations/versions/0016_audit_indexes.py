"""The conditions of the audit log's partial indexes begin with the actions of leases, which none of them has.

A lease's record is past each index with one comparison. Before, SQLite made a table of the listed actions for
each index and record, and that took two thirds of the time of a record.

Records of what is held and restored are among those of ends: a connection that an offboarding has stopped
isn't freed by who writes to the database.
"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0014"
branch_labels = None
depends_on = None

_NO_LEASE = "action <> 'lease.issued' AND action <> 'lease.dpop_proof_issued' AND action <> 'proxy.called'"
_ACCESS_WORDS = (
    *("access", "app", "approval", "credential", "integration", "issuer", "key", "permit"),
    *("person", "role", "session"),
    *("admin_login", "client_login", "delegation_rule", "oauth_client", "tenant", "trusted_issuer"),
)
_ACCESS = " OR ".join(f"action LIKE '{word}.%'" for word in _ACCESS_WORDS)
_ENDS = (
    "'app.deleted', 'app.put', 'app.agent_stopped', 'app.denies_changed', "
    "'approval.requested', 'approval.used', 'call_approval.denied', 'call_approval.expired', "
    "'call_approval.used', 'credential.deleted', 'delegation.stopped', 'key.revoked', "
    "'permit.deleted', 'resource_token.revoked', 'connection.revocation_requested', "
    "'connection.revoked', 'session.ended', 'tenant.disabled', 'tenant.enabled', "
    "'token_family.ended', 'token_family.replayed', 'admin_login.deleted', "
    "'client_login.deleted', 'delegation_rule.deleted', 'trusted_issuer.deleted', "
    "'connection.held', 'connection.restored'"
)
_BIRTHS = "'audit.shard_begun', 'audit.shard_lost'"
_INDEXES = (
    ("ix_audit_object", ("tenant", "object", "at"), _NO_LEASE),
    ("ix_audit_end", ("tenant", "object"), f"{_NO_LEASE} AND action IN ({_ENDS})"),
    ("ix_audit_access", ("tenant", "at"), f"{_NO_LEASE} AND ({_ACCESS})"),
    ("ix_audit_birth", ("tenant", "object"), f"{_NO_LEASE} AND action IN ({_BIRTHS})"),
)


def upgrade() -> None:
    for name, columns, where in _INDEXES:
        op.drop_index(name, "audit")
        condition = sa.text(where)
        op.create_index(name, "audit", list(columns), sqlite_where=condition, postgresql_where=condition)


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")
