"""The tables of the audit log: its records, and the end of each shard's hash chain."""

from datetime import datetime

from sqlalchemy import BigInteger, Index, Text
from sqlmodel import Field

from evergrant_server.core.audit import AuditAction
from evergrant_server.store.database import columns

# the actions that say who may do what, by their first word
_ACCESS_WORDS = (
    *("access", "app", "approval", "credential", "integration", "issuer", "key", "permit"),
    *("person", "role", "session"),
    *("admin_login", "client_login", "delegation_rule", "oauth_client", "tenant", "trusted_issuer"),
)
ACCESS_CONDITION = "({})".format(" OR ".join(f"action LIKE '{word}.%'" for word in _ACCESS_WORDS))


# the actions that end something, or begin it anew: a row that was put back is told by them (`store.ends`)
END_ACTIONS = (
    *(AuditAction.APP_DELETED, AuditAction.APP_PUT, AuditAction.AGENT_STOPPED, AuditAction.DENIES_CHANGED),
    *(AuditAction.APPROVAL_REQUESTED, AuditAction.APPROVAL_USED, AuditAction.CALL_APPROVAL_DENIED),
    *(AuditAction.CALL_APPROVAL_EXPIRED, AuditAction.CALL_APPROVAL_USED, AuditAction.CREDENTIAL_DELETED),
    *(AuditAction.DELEGATION_STOPPED, AuditAction.KEY_REVOKED, AuditAction.PERMIT_DELETED),
    *(AuditAction.RESOURCE_TOKEN_REVOKED, AuditAction.REVOCATION_REQUESTED, AuditAction.REVOKED),
    *(AuditAction.SESSION_ENDED, AuditAction.TENANT_DISABLED, AuditAction.TENANT_ENABLED),
    *(AuditAction.TOKEN_FAMILY_ENDED, AuditAction.TOKEN_FAMILY_REPLAYED),
    *(AuditAction.ADMIN_LOGIN_DELETED, AuditAction.CLIENT_LOGIN_DELETED),
    *(AuditAction.DELEGATION_RULE_DELETED, AuditAction.TRUSTED_ISSUER_DELETED),
)
END_CONDITION = "action IN ({})".format(", ".join(f"'{action.value}'" for action in END_ACTIONS))


class AuditRow(columns.TenantTable, table=True):
    __table_args__ = (
        Index(None, "tenant", "object", "at"),
        Index(None, "tenant", "at"),
        columns.partial_index("ix_audit_end", "tenant", "object", where=END_CONDITION),
        columns.partial_index("ix_audit_access", "tenant", "at", where=ACCESS_CONDITION),
    )
    shard: str = Field(primary_key=True)
    seq: int = Field(primary_key=True, sa_type=BigInteger)
    at: datetime = columns.timestamp()
    action: str
    object: str
    by: str
    trace_id: str
    detail: str = Field(sa_type=Text)  # canonical JSON, as it was hashed
    workflow_id: str | None = None
    run_id: str | None = None
    event_id: int | None = None
    previous_hash: str
    hash: str
    erased_mac: str | None = None  # that Evergrant has erased what `hash` covers


# Whose details decide: whether an app is disabled, and which of its permits deny (`store.ends`). They name no
# subject.
DECISIVE_ACTIONS = (AuditAction.APP_PUT, AuditAction.DENIES_CHANGED)
# What stays of what was erased: that it was revoked and erased, by whom, and which holds there were.
EVIDENCE_ACTIONS = (
    *(AuditAction.REVOKED, AuditAction.CONNECTION_ERASED, AuditAction.ERASURE_REQUESTED),
    *(AuditAction.ERASURE_REFUSED, AuditAction.ERASURE_ENDED, AuditAction.HOLD_PUT, AuditAction.HOLD_ENDED),
)


class AuditShardRow(columns.TenantTable, table=True):
    shard: str = Field(primary_key=True)
    count: int = Field(sa_type=BigInteger)
    last_hash: str
    mac: str | None = None
