"""The tables of the audit log: its records, the trees of their leaves, and the ends of earlier chains."""

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Index, LargeBinary, Text, true
from sqlmodel import Field

from evergrant_server.core.audit import AuditAction
from evergrant_server.store.database import columns


def _listed(actions: Iterable[AuditAction]) -> str:
    return ", ".join(f"'{action.value}'" for action in actions)


# the actions of the records that a lease ledger writes. They are filed by their objects a little later
# (`AuditFiledRow`): an index by object costs as much as all the rest of a record.
LEASE_ACTIONS = (AuditAction.LEASE_ISSUED, AuditAction.DPOP_PROOF_ISSUED, AuditAction.PROXY_CALLED)
# The condition of every partial index begins with it, so that a lease is past each with one comparison: for
# a list of actions SQLite makes a table with each record, which took longer than all the rest of a record.
NO_LEASE_CONDITION = " AND ".join(f"action <> '{action.value}'" for action in LEASE_ACTIONS)


# the actions that say who may do what, by their first word
ACCESS_WORDS = (
    *("access", "app", "approval", "credential", "integration", "issuer", "key", "permit"),
    *("person", "role", "session"),
    *("admin_login", "client_login", "delegation_rule", "oauth_client", "tenant", "trusted_issuer"),
)
_ACCESS = " OR ".join(f"action LIKE '{word}.%'" for word in ACCESS_WORDS)
ACCESS_CONDITION = f"{NO_LEASE_CONDITION} AND ({_ACCESS})"


# the actions that end something, or begin it anew: they tell a row that was put back (`store.revived_rows`)
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
    *(AuditAction.CONNECTION_HELD, AuditAction.CONNECTION_RESTORED),
)
END_CONDITION = f"{NO_LEASE_CONDITION} AND action IN ({_listed(END_ACTIONS)})"


# the actions by which the installation knows its shards
BIRTH_ACTIONS = (AuditAction.SHARD_BEGUN, AuditAction.SHARD_LOST)
BIRTH_CONDITION = f"{NO_LEASE_CONDITION} AND action IN ({_listed(BIRTH_ACTIONS)})"


class AuditRow(columns.TenantTable, table=True):
    """A record. `at`, `action` and `object` are copies of what its body says, for queries."""

    __table_args__ = (
        Index(None, "tenant", "at"),
        columns.partial_index("ix_audit_object", "tenant", "object", "at", where=NO_LEASE_CONDITION),
        columns.partial_index("ix_audit_end", "tenant", "object", where=END_CONDITION),
        columns.partial_index("ix_audit_access", "tenant", "at", where=ACCESS_CONDITION),
        columns.partial_index("ix_audit_birth", "tenant", "object", where=BIRTH_CONDITION),
    )
    shard: str = Field(primary_key=True)
    seq: int = Field(primary_key=True, sa_type=BigInteger)  # in its tree, from 0
    at: datetime = columns.timestamp()
    action: str
    object: str
    body: str | None = Field(default=None, sa_type=Text)  # as it was hashed; NULL: erased
    leaf: bytes = Field(sa_type=LargeBinary)
    erased_mac: str | None = None  # that Evergrant has erased the body of this leaf


class AuditTreeRow(columns.TenantTable, table=True):
    """The tree of a shard, as far as appending needs it (`audit.tree.Frontier`). Its records before number
    `filed` are found by their objects."""

    __table_args__ = (
        columns.partial_index("ix_audit_tree_unfiled", "tenant", "shard", where="filed < size"),
        columns.partial_index("ix_audit_tree_grown", "tenant", "shard", where="grown"),
    )
    shard: str = Field(primary_key=True)
    size: int = Field(sa_type=BigInteger)
    peaks: bytes = Field(sa_type=LargeBinary)
    mac: str | None = None
    filed: int = Field(default=0, sa_type=BigInteger)
    # whether it may have records that no head covers: a trigger sets it when the tree grows
    grown: bool = Field(default=True, sa_column_kwargs={"server_default": true()})


class AuditFiledRow(columns.TenantTable, table=True):
    """The place of a lease's record, by its object."""

    __table_args__ = ({"sqlite_with_rowid": False},)
    object: str = Field(primary_key=True)
    at: datetime = Field(primary_key=True, sa_type=columns.UtcDateTime)
    shard: str = Field(primary_key=True)
    seq: int = Field(primary_key=True, sa_type=BigInteger)


class AuditHourRow(columns.TenantTable, table=True):
    """How many records of an action a tenant has of one hour, counted as they are filed (`audit.filing`)."""

    __table_args__ = (Index(None, "hour"),)
    hour: datetime = Field(primary_key=True, sa_type=columns.UtcDateTime)
    action: str = Field(primary_key=True)
    number: int


class AuditNodeRow(columns.TenantTable, table=True):
    """A hash of level 1 or higher of a tree in C2SP's tiles: of 256 of the level below; level 0 are leaves.

    Whoever records heads writes them, after the leaves.
    """

    shard: str = Field(primary_key=True)
    level: int = Field(primary_key=True)
    number: int = Field(primary_key=True, sa_type=BigInteger)
    hash: bytes = Field(sa_type=LargeBinary)


class AuditShardRow(columns.TenantTable, table=True):
    """The end of a hash chain of before the trees. None is begun or moved any more."""

    shard: str = Field(primary_key=True)
    count: int = Field(sa_type=BigInteger)
    last_hash: str
    mac: str | None = None


CHAINED = ("main", "gateway")  # the shards of chains that had records of END_ACTIONS


def detail_of(body: str | None) -> dict[str, Any]:
    """The details in the body of a record, in each of its formats; of an erased one there are none."""
    return {} if body is None else json.loads(body)["detail"]


# Whose details decide: whether an app is disabled, and which of its permits deny (`store.revived_rows`).
# They name no subject.
DECISIVE_ACTIONS = (AuditAction.APP_PUT, AuditAction.DENIES_CHANGED)
# What stays of what was erased: that it was revoked and erased, by whom, and which holds there were; that
# somebody has left; and how the chains have ended.
EVIDENCE_ACTIONS = (
    *(AuditAction.REVOKED, AuditAction.CONNECTION_ERASED, AuditAction.ERASURE_REQUESTED),
    *(AuditAction.ERASURE_REFUSED, AuditAction.ERASURE_ENDED, AuditAction.HOLD_PUT, AuditAction.HOLD_ENDED),
    *(AuditAction.OFFBOARDING_BEGUN, AuditAction.OFFBOARDING_UNDONE, AuditAction.OFFBOARDING_ENDED),
    AuditAction.CHAIN_ENDED,
)
