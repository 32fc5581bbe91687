"""The lease path's row: everything a lease is judged and made from, in one plain query."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import JSON, Boolean, Integer, String, TextualSelect, text

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import LifecycleState, is_leasable
from evergrant_server.core.connections.grant import MAIN_SLOT, FollowUp, Grant
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, IntegrationId, Tenant
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.attempt import LIMITS
from evergrant_server.crypto import KeyPurpose, KeyRing, ReadySeal, Sealed, key_id_of
from evergrant_server.crypto.envelope import key_unavailable, seal_broken
from evergrant_server.store.audit_tables import END_CONDITION
from evergrant_server.store.authority.authenticators import (
    connection_parts,
    require_grant,
    require_signed,
    was_put_back,
)
from evergrant_server.store.connections.grants import ACCESS_COLUMN, grant_associated_data, was_rolled_back
from evergrant_server.store.connections.tables import LIVE_CONDITION, ConnectionRow
from evergrant_server.store.database.columns import SealedBytes, UtcDateTime
from evergrant_server.store.database.engine import Pool
from evergrant_server.store.keys import WrappedKey, unwrap
from evergrant_server.store.store import Store

_MAIN_GRANT = f"""
LEFT JOIN connection_grant g ON g.tenant = c.tenant AND g.connection_id = c.id AND g.slot = '{MAIN_SLOT}'
"""
# one from before the main access token, which a database writer put back, is of another grant
_NARROWED_GRANT = f"""
LEFT JOIN connection_grant m ON m.tenant = c.tenant AND m.connection_id = c.id AND m.slot = '{MAIN_SLOT}'
LEFT JOIN connection_grant g ON g.tenant = c.tenant AND g.connection_id = c.id AND g.slot = :slot
     AND g.generation BETWEEN coalesce(m.access_generation, m.generation) AND c.generation
"""
_ENDED = "action IN ({})".format(
    ", ".join(f"'{action.value}'" for action in (AuditAction.REVOCATION_REQUESTED, AuditAction.REVOKED))
)
_HELD = " ".join(
    (
        f"sum(CASE action WHEN '{AuditAction.CONNECTION_HELD.value}' THEN 1",
        f"WHEN '{AuditAction.CONNECTION_RESTORED.value}' THEN -1 ELSE 0 END)",
    )
)
_COLUMNS = f"""
SELECT c.tenant, c.id, c.id AS connection_id, c.integration_id, c.integration, c.provider, c.subject,
       c.label, c.flow, c.target, c.source, c.source_app, c.consented_with, c.expected_account,
       c.mac, c.state, c.reason, c.follow_up, c.reported_generation, c.held_by,
       c.revision AS connection_revision, c.generation,
       EXISTS (SELECT 1 FROM audit WHERE tenant = c.tenant AND object = c.id AND {END_CONDITION}
               AND {_ENDED}) AS has_ended,
       (SELECT {_HELD} FROM audit WHERE tenant = c.tenant AND object = c.id AND {END_CONDITION}) AS held,
       g.generation AS grant_generation, g.token_type, g.scopes, g.obtained_at, g.expires_at,
       g.refresh_expires_at, g.refreshable, g.facts, g.options, g.access_generation, g.sealed_access,
       g.mac AS grant_mac,
       k.id AS key_id, k.sealed_key AS connection_key, t.id AS tenant_key_id, t.sealed_key AS tenant_key
FROM connection c
"""
_KEYS = f"""
LEFT JOIN key k ON k.tenant = c.tenant AND k.connection_id = c.id AND k.purpose = '{KeyPurpose.LEASE}'
     AND k.retired_at IS NULL
LEFT JOIN key t ON t.tenant = c.tenant AND t.id = k.wrapping_key_id AND t.purpose = '{KeyPurpose.LEASE}'
     AND t.connection_id = ''
"""


def _typed(condition: str, grant: str = _MAIN_GRANT) -> TextualSelect:
    return text(_COLUMNS + grant + _KEYS + condition).columns(
        target=JSON,
        expected_account=JSON,
        grant_generation=Integer,
        token_type=String,
        scopes=JSON,
        obtained_at=UtcDateTime,
        expires_at=UtcDateTime,
        refresh_expires_at=UtcDateTime,
        refreshable=Boolean,
        facts=JSON,
        options=JSON,
        sealed_access=SealedBytes,
        connection_key=SealedBytes,
        tenant_key=SealedBytes,
    )


_BY_ID = _typed("WHERE c.tenant = :tenant AND c.id = :id")
_NARROWED = _typed("WHERE c.tenant = :tenant AND c.id = :id", _NARROWED_GRANT)
_BY_NAMES = _typed(
    "WHERE c.tenant = :tenant AND c.integration = :integration AND c.subject = :subject AND c.label = :label"
    f" ORDER BY CASE WHEN c.{LIVE_CONDITION} THEN 0 ELSE 1 END, c.created_at DESC, c.id LIMIT 1"
)

_POSITIONS = "SELECT tenant, id, state, generation FROM connection WHERE id "
_POSITIONS_SQLITE = text(_POSITIONS + "IN (SELECT value FROM json_each(:ids))")
_POSITIONS_POSTGRESQL = text(_POSITIONS + "= ANY(CAST(:ids AS varchar[]))")


class ConnectionPosition(NamedTuple):
    """Where a connection is, unauthenticated: a reason to load its row."""

    state: str  # a LifecycleState
    generation: int


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """A connection with its main grant, or a narrower token of it, sealed. Safe to cache: it opens only
    through the key ring."""

    tenant: Tenant
    connection_id: ConnectionId
    integration_id: IntegrationId
    integration: str
    provider: str
    subject: str
    label: str
    state: LifecycleState
    reason: ErrorCode | None
    follow_up: FollowUp | None
    reported_generation: int | None
    connection_revision: int
    generation: int
    grant: Grant | None
    sealed_access: Sealed | None
    keys: WrappedKey | None
    slot: str = MAIN_SLOT
    held: bool = False  # its subject leaves

    @property
    def has_ended(self) -> bool:
        return self.state is LifecycleState.REVOKING or self.state.is_final

    @property
    def grant_over(self) -> bool:
        """True when its grant has ended: the provider may refuse its token before its date."""
        return self.state is LifecycleState.NEEDS_REAUTH

    @property
    def leasable(self) -> bool:
        """True when its token may be leased while it is valid."""
        reported = self.reported_generation == self.generation
        return is_leasable(self.state, self.reason, self.follow_up, reported=reported, held=self.held)

    def brought_token_after(self, generation: int) -> bool:
        """True when its access token is of a later generation, which a narrower one beside it isn't."""
        return self.grant is not None and self.grant.token_generation > generation

    def open_access_token(self, ring: KeyRing) -> Secret:
        """The access token. Raises as `ready_token` does."""
        return Secret(self.ready_token(ring).open().decode())

    def ready_token(self, ring: KeyRing) -> ReadySeal:
        """The sealed access token beside its key. Raises Failure CONSENT_REQUIRED when there is none, and
        SEAL_BROKEN or KEY_UNAVAILABLE that names the row."""
        if self.grant is None or self.sealed_access is None:
            raise Failure(ErrorCode.CONSENT_REQUIRED, f"{self.connection_id} holds no access token.")
        place = grant_associated_data(
            self.tenant, self.connection_id, self.slot, ACCESS_COLUMN, self.grant.generation
        )
        if was_rolled_back(self.slot, self.grant.generation, self.generation):
            raise seal_broken(place, "belongs to another generation than its connection")
        if self.keys is None:
            raise key_unavailable(place, "its key is not in the store")
        if key_id_of(self.sealed_access, place) != self.keys.id:
            raise seal_broken(place, "was sealed with another key than its connection's")
        key = unwrap(ring, self.tenant, KeyPurpose.LEASE, self.keys)
        return ReadySeal(key, place, self.sealed_access, ring.hold_of(KeyPurpose.LEASE))


class LeaseRows:
    """Loads lease rows, each with one query outside any transaction."""

    def __init__(self, store: Store) -> None:
        self._store = store.in_pool(Pool.LEASES)
        self._polled = store.in_pool(Pool.POLLER)

    async def load(self, tenant: Tenant, connection_id: ConnectionId) -> LeaseRow | None:
        """The row of this connection, or None. Raises Failure STORE_UNAVAILABLE, AUTHORITY_BROKEN."""
        return await self._load(_BY_ID, {"tenant": tenant, "id": connection_id})

    async def load_by_names(
        self, tenant: Tenant, integration: str, subject: str, label: str = "default"
    ) -> LeaseRow | None:
        """The live connection with these names, or else the newest ended one, or None."""
        names = {"tenant": tenant, "integration": integration, "subject": subject, "label": label}
        return await self._load(_BY_NAMES, names)

    async def load_narrowed(self, tenant: Tenant, connection_id: ConnectionId, slot: str) -> LeaseRow | None:
        """The row with the narrower token of this slot as its grant; without one, with none."""
        return await self._load(_NARROWED, {"tenant": tenant, "id": connection_id, "slot": slot}, slot)

    async def is_at_provider(self, tenant: Tenant, connection_id: ConnectionId) -> bool:
        """Whether a worker has sent something for this connection and may still get the reply."""
        async with self._store.read() as tx:
            attempt = await tx.attempts.open_of_any_kind(tenant, connection_id, MAIN_SLOT)
            return attempt is not None and tx.now - attempt.opened_at < LIMITS.send + LIMITS.answer

    async def positions(
        self, ids: Sequence[ConnectionId]
    ) -> dict[tuple[Tenant, ConnectionId], ConnectionPosition]:
        """Where these connections are; one that doesn't exist is left out. Raises as `load`."""
        sqlite = self._polled.is_sqlite
        query = _POSITIONS_SQLITE if sqlite else _POSITIONS_POSTGRESQL
        async with self._polled.autocommit() as connection:
            rows = (await connection.execute(query, {"ids": json.dumps(ids) if sqlite else ids})).all()
        return {(row.tenant, row.id): ConnectionPosition(row.state, row.generation) for row in rows}

    async def _load(
        self, query: TextualSelect, parameters: dict[str, str], slot: str = MAIN_SLOT
    ) -> LeaseRow | None:
        async with self._store.autocommit() as connection:
            row: Any = (await connection.execute(query, parameters)).mappings().first()
        if row is None:
            return None
        parts = connection_parts(row, row["target"])
        require_signed(self._store.ring, parts, ConnectionRow, row, gateway_may=not row["generation"])
        lease_row = _lease_row(row, slot)
        is_freed = (row["held"] or 0) > 0 and not lease_row.held
        if (row["has_ended"] or is_freed) and not lease_row.has_ended:
            raise was_put_back(ConnectionRow, lease_row.connection_id)
        if lease_row.grant is not None:
            owner = (row["tenant"], row["connection_id"])
            require_grant(self._store.ring, *owner, lease_row.grant, slot, row["grant_mac"])
        return lease_row


def _lease_row(row: Any, slot: str) -> LeaseRow:
    keys: WrappedKey | None = None
    if row["key_id"] is not None and row["tenant_key_id"] is not None:
        mine = (row["key_id"], row["connection_id"], row["connection_key"])
        keys = WrappedKey(*mine, row["tenant_key_id"], row["tenant_key"])
    return LeaseRow(
        row["tenant"],
        row["connection_id"],
        row["integration_id"],
        row["integration"],
        row["provider"],
        row["subject"],
        row["label"],
        LifecycleState(row["state"]),
        None if row["reason"] is None else ErrorCode(row["reason"]),
        None if row["follow_up"] is None else FollowUp(row["follow_up"]),
        row["reported_generation"],
        row["connection_revision"],
        row["generation"],
        None if row["grant_generation"] is None else _grant(row),
        row["sealed_access"],
        keys,
        slot,
        row["held_by"] is not None,
    )


def _grant(row: Any) -> Grant:
    return Grant(
        generation=row["grant_generation"],
        token_type=row["token_type"],
        scopes=tuple(row["scopes"]),
        obtained_at=row["obtained_at"],
        expires_at=row["expires_at"],
        refresh_expires_at=row["refresh_expires_at"],
        refreshable=row["refreshable"],
        metadata=row["facts"],
        options=row["options"],
        access_generation=row["access_generation"],
    )
