"""One batch of leases in one transaction: checked again for a revocation, chained, counted.

`lease_ledger` gathers it and answers the callers.

The statements are written out for each driver, because building them took longer than
running them.
"""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from evergrant_server.audit.chain_head import ChainHead, main_shard
from evergrant_server.audit.delegated_leases import Revisions, rows_postgresql, rows_sqlite
from evergrant_server.audit.hash_chain import append, birth_entry, chained_rows
from evergrant_server.audit.last_uses import (
    LastUses,
    sqlite_moment,
    write_uses_postgresql,
    write_uses_sqlite,
)
from evergrant_server.audit.lease_claim import LeaseClaim
from evergrant_server.core.audit import INSTALLATION, AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.ids import Tenant
from evergrant_server.crypto import KeyRing
from evergrant_server.store import Transaction
from evergrant_server.store.database.engine import asyncpg_driver, sqlite_driver
from evergrant_server.store.database.rows import Values

# A valid token is leased while a new consent is awaited, too.
_LEASABLE = frozenset({LifecycleState.ACTIVE.value, LifecycleState.NEEDS_REAUTH.value})
_COLUMNS = (
    "tenant", "shard", "seq", "at", "action", "object", "by", "trace_id", "detail",
    "workflow_id", "run_id", "event_id", "previous_hash", "hash", "revision",
)  # fmt: skip
_NAMES = ", ".join(f'"{name}"' for name in _COLUMNS)
_RAISED = (
    " ON CONFLICT (tenant, connection_id) DO UPDATE"
    " SET leased_generation = excluded.leased_generation, revision = usage.revision + 1"
    " WHERE usage.leased_generation < excluded.leased_generation"
)

_CONNECTIONS = "SELECT id, tenant, revision, generation, state FROM connection WHERE id "
_APPS = (  # from a set of ids: PostgreSQL would plan `= ANY` anew each time
    "SELECT app.id, app.tenant, app.revision, app.disabled OR s.disabled FROM {}"
    " JOIN app USING (id) JOIN tenant_standing s ON s.tenant = app.tenant AND s.id = app.tenant"
)
_LITE_CONNECTIONS = _CONNECTIONS + "IN (SELECT value FROM json_each(?))"
_LITE_APPS = _APPS.format("(SELECT value AS id FROM json_each(?)) AS named")
_LITE_HEAD = "SELECT count, last_hash, mac FROM audit_shard WHERE tenant = ? AND shard = ?"
_LITE_FIRST = (
    "INSERT INTO audit_shard (tenant, shard, count, last_hash, mac, revision) VALUES (?, ?, ?, ?, ?, 1)"
)
_LITE_RECORDS = f"INSERT INTO audit ({_NAMES}) VALUES ({', '.join(':' + name for name in _COLUMNS)})"
_LITE_MOVED = (
    "UPDATE audit_shard SET count = ?, last_hash = ?, mac = ?, revision = revision + 1"
    " WHERE tenant = ? AND shard = ?"
)
_LITE_USAGE = (
    "INSERT INTO usage (tenant, connection_id, leased_generation, revision) VALUES (?, ?, ?, 1)" + _RAISED
)

# On PostgreSQL a change of these rows waits for this transaction: it commits before or after the lease is in
# the log, never in between (the other side is the trigger `exclude_leases`). The batch waits for no change: a
# claim whose row is being changed is judged with a later batch, and those beside it don't wait.
_PG_LOCKS = (
    "SELECT id FROM unnest($1::varchar[]) AS id"
    " WHERE pg_try_advisory_xact_lock_shared(hashtextextended(id, 0))"
)
_PG_CONNECTIONS = _CONNECTIONS + "= ANY($1::varchar[])"
_PG_APPS = _APPS.format("unnest($1::varchar[]) AS named(id)")
_PG_HEAD = "SELECT count, last_hash, mac FROM audit_shard WHERE tenant = $1 AND shard = $2 FOR UPDATE"
_PG_FIRST = (
    "INSERT INTO audit_shard (tenant, shard, count, last_hash, mac, revision) VALUES ($1, $2, $3, $4, $5, 1)"
    " ON CONFLICT DO NOTHING"
)
_PG_TYPES = (
    "varchar", "varchar", "bigint", "timestamptz", "varchar", "varchar", "varchar", "varchar", "text",
    "varchar", "varchar", "integer", "varchar", "varchar", "integer",
)  # fmt: skip
_PG_RECORDS = (
    f"WITH moved AS (UPDATE audit_shard SET count = $16, last_hash = $17, mac = $18, revision = revision + 1"
    f" WHERE tenant = $19 AND shard = $20)"
    f" INSERT INTO audit ({_NAMES})"
    f" SELECT * FROM unnest({', '.join(f'${n}::{type_}[]' for n, type_ in enumerate(_PG_TYPES, 1))})"
)
_PG_USAGE = (
    "INSERT INTO usage (tenant, connection_id, leased_generation, revision)"
    " SELECT *, 1 FROM unnest($1::varchar[], $2::varchar[], $3::integer[])" + _RAISED
)


class Written(NamedTuple):
    """The places of the claims that were written, and of those that wait for a change of what they name."""

    leased: frozenset[int]
    busy: frozenset[int]


async def write_sqlite(
    tx: Transaction, shard: str, claims: Sequence[LeaseClaim], uses: LastUses, clock: Clock
) -> Written:
    """Write what still holds. The transaction is IMMEDIATE: no other one changes a row."""
    raw, ring = sqlite_driver(tx.connection), tx.sealer.ring
    connection_ids, app_ids = _ids(claims)
    good = _still_leasable(
        claims,
        raw.execute(_LITE_CONNECTIONS, (json.dumps(connection_ids),)),
        raw.execute(_LITE_APPS, (json.dumps(app_ids),)),
        rows_sqlite(raw, [claim.delegated for claim in claims if claim.delegated is not None]),
        clock.now(),
    )
    kept = [claims[place] for place in sorted(good)]
    for tenant, entries in _by_tenant(kept):
        stored: tuple[int, str, str | None] | None = raw.execute(_LITE_HEAD, (tenant, shard)).fetchone()
        if stored is None:
            head = ChainHead.first(ring, tenant, shard)
            raw.execute(_LITE_FIRST, head)
            await append(tx, birth_entry(ring.role, tenant, shard, clock.now()))
        else:
            head = ChainHead(tenant, shard, *stored)
        rows, end = _chained(ring, head, entries)
        raw.executemany(_LITE_RECORDS, [{**row, "at": sqlite_moment(row["at"])} for row in rows])
        raw.execute(_LITE_MOVED, (end.count, end.last_hash, end.mac, tenant, shard))
    raw.executemany(_LITE_USAGE, _newest_generations(kept))
    write_uses_sqlite(raw, uses)
    return Written(good, frozenset())


async def write_postgresql(
    tx: Transaction, shard: str, claims: Sequence[LeaseClaim], uses: LastUses, clock: Clock
) -> Written:
    """Write what still holds and isn't being changed."""
    raw, ring = await asyncpg_driver(tx.connection), tx.sealer.ring
    connection_ids, app_ids = _ids(claims)
    async with raw.transaction(isolation="read_committed"):  # so that the rows are read after the locks
        named = sorted(set[str]().union(*(claim.named for claim in claims)))
        locked = {row[0] for row in await raw.fetch(_PG_LOCKS, named)}
        connections = await raw.fetch(_PG_CONNECTIONS, connection_ids)
        apps = await raw.fetch(_PG_APPS, app_ids)
        used = [claim.delegated for claim in claims if claim.delegated is not None]
        delegations = await rows_postgresql(raw, used)
        busy = frozenset(n for n, claim in enumerate(claims) if not claim.named <= locked)
        good = _still_leasable(claims, connections, apps, delegations, clock.now()) - busy
        kept = [claims[place] for place in sorted(good)]
        for tenant, entries in _by_tenant(kept):
            await _append_postgresql(
                raw, *_chained(ring, await _locked_head(raw, ring, tenant, shard, clock), entries)
            )
        if kept:
            await raw.execute(_PG_USAGE, *zip(*_newest_generations(kept), strict=True))
        await write_uses_postgresql(raw, uses)
    return Written(good, busy)


async def _locked_head(raw: Any, ring: KeyRing, tenant: str, shard: str, clock: Clock) -> ChainHead:
    """The end of a chain, locked. A chain that begins is recorded, also behind a broken end."""
    stored = await raw.fetchrow(_PG_HEAD, tenant, shard)
    if stored is None:
        await raw.execute(_PG_FIRST, *ChainHead.first(ring, tenant, shard))
        stored = await raw.fetchrow(_PG_HEAD, tenant, shard)
        if tenant != INSTALLATION:
            above = await _locked_head(raw, ring, INSTALLATION, main_shard(ring.role), clock)
            birth = birth_entry(ring.role, tenant, shard, clock.now())
            authentic = above.is_authentic(ring)
            await _append_postgresql(raw, *_behind(ring, above, [birth], authentic=authentic))
    return ChainHead(tenant, shard, *stored)


async def _append_postgresql(raw: Any, rows: list[Values], end: ChainHead) -> None:
    columns = ([row[name] for row in rows] for name in _COLUMNS)
    moved = (end.count, end.last_hash, end.mac, end.tenant, end.shard)
    await raw.execute(_PG_RECORDS, *columns, *moved)


def _chained(ring: KeyRing, head: ChainHead, entries: Sequence[AuditEntry]) -> tuple[list[Values], ChainHead]:
    """The rows behind this head, and the new one. Raises Failure AUTHORITY_BROKEN: no token leaves behind
    records that were cut or rewritten."""
    if not head.is_authentic(ring):
        raise head.broken
    return _behind(ring, head, entries, authentic=True)


def _behind(
    ring: KeyRing, head: ChainHead, entries: Sequence[AuditEntry], *, authentic: bool
) -> tuple[list[Values], ChainHead]:
    rows = chained_rows(entries, head.shard, head.count, head.last_hash)
    return rows, head.moved(ring, rows[-1]["seq"], rows[-1]["hash"], authentic=authentic)


def _ids(claims: Sequence[LeaseClaim]) -> tuple[list[str], list[str]]:
    apps = {str(claim.app_id) for claim in claims}
    for claim in claims:
        if claim.delegated is not None:
            apps.update(id for id, _ in claim.delegated.apps)
    return sorted({claim.connection_id for claim in claims}), sorted(apps)


def _still_leasable(
    claims: Sequence[LeaseClaim],
    connection_rows: Iterable[Any],
    app_rows: Iterable[Any],
    delegations: Revisions,
    now: datetime,
) -> frozenset[int]:
    connections = {row[0]: tuple(row)[:4] for row in connection_rows if row[4] in _LEASABLE}
    apps: Revisions = {row[0]: tuple(row) for row in app_rows}
    return frozenset(
        place
        for place, claim in enumerate(claims)
        if now < claim.valid_until
        and connections.get(claim.connection_id)
        == (claim.connection_id, claim.tenant, claim.connection_revision, claim.generation)
        and apps.get(claim.app_id) == (claim.app_id, claim.tenant, claim.app_revision, False)
        and (claim.delegated is None or claim.delegated.holds(claim.tenant, delegations, apps))
    )


def _by_tenant(claims: Iterable[LeaseClaim]) -> list[tuple[Tenant, list[AuditEntry]]]:
    """Always in the same order: two ledgers never wait crosswise."""
    entries: dict[Tenant, list[AuditEntry]] = {}
    for claim in claims:
        entries.setdefault(claim.tenant, []).append(_entry(claim))
    return sorted(entries.items())


def _entry(claim: LeaseClaim) -> AuditEntry:
    action = AuditAction.LEASE_ISSUED
    detail: dict[str, object] = {"scopes": list(claim.scopes)}
    if claim.dpop_request is not None:
        action = AuditAction.DPOP_PROOF_ISSUED
        detail = {"for": claim.dpop_request}
    elif claim.proxied is not None:
        action = AuditAction.PROXY_CALLED
        detail = dict(claim.proxied)
        if claim.through is not None:
            detail["through"] = claim.through
    elif claim.signed_request:
        detail["signed"] = claim.signed_request
    if claim.authorization is not None:
        detail |= claim.authorization.named
    if claim.permit is not None:
        detail["permit"] = claim.permit.name
    if claim.delegated is not None:
        detail["acts_for"] = claim.delegated.recorded
    if claim.observed:
        detail["would_be_denied_by"] = list(claim.observed)
    return AuditEntry(
        tenant=claim.tenant,
        at=claim.at,
        action=action,
        object=claim.connection_id,
        context=claim.context,
        detail={"app": claim.app_id, "generation": claim.generation, **detail},
    )


def _newest_generations(claims: Sequence[LeaseClaim]) -> list[tuple[str, str, int]]:
    newest: dict[tuple[str, str], int] = {}
    for claim in claims:
        place = (claim.tenant, claim.connection_id)
        newest[place] = max(newest.get(place, 0), claim.generation)
    return [(*place, generation) for place, generation in sorted(newest.items())]
