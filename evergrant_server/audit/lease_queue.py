"""Leases wait for a batch in fair order, and are looked at once more in the transaction that records them.

The order goes tenant by tenant, and app by app within each: an app that sends more than it can be served
waits for itself, and the leases of others pass it. `lease_writer_sqlite` and `lease_writer_postgresql` write
a batch, `lease_ledger` answers the callers. Statements are written out for each driver, because building them
took longer than running them.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from time import monotonic
from typing import Any, NamedTuple

from evergrant_server.audit.lease_record import DelegatedUse, LeaseRecord, Revisions
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.ids import AppId, Tenant

LARGEST_BATCH = 64  # more save little of a commit's cost, and each waits for all of them
APP_SHARE = 2  # of one app, while others lease: what it has open doesn't decide how long a batch takes
_OTHERS_S = 5.0  # an app counts as another for as long after its last lease

# A valid token is leased while a new consent is awaited, too.
LEASABLE = frozenset({LifecycleState.ACTIVE.value, LifecycleState.NEEDS_REAUTH.value})
CONNECTIONS = "SELECT id, tenant, revision, generation, state FROM connection WHERE id "
APPS = (  # from a set of ids: PostgreSQL would plan `= ANY` anew each time
    "SELECT app.id, app.tenant, app.revision, app.disabled OR s.disabled FROM {}"
    " JOIN app USING (id) JOIN tenant_standing s ON s.tenant = app.tenant AND s.id = app.tenant"
)
END = "SELECT size, peaks, mac FROM audit_tree WHERE tenant = {} AND shard = {}"
RAISED_USAGE = (
    " ON CONFLICT (tenant, connection_id) DO UPDATE"
    " SET leased_generation = excluded.leased_generation, revision = usage.revision + 1"
    " WHERE usage.leased_generation < excluded.leased_generation"
)


class WaitingLease(NamedTuple):
    record: LeaseRecord
    done: "asyncio.Future[int]"  # its number in the tree


class LeaseQueue:
    """The leases of one process that wait for a commit. One whose caller has gone is dropped."""

    def __init__(self) -> None:
        self._tenants: dict[Tenant, dict[AppId, deque[WaitingLease]]] = {}
        self._last_app: AppId | None = None
        self._shared_until = 0.0

    def __len__(self) -> int:
        return sum(len(leases) for apps in self._tenants.values() for leases in apps.values())

    def add(self, waiting: WaitingLease) -> None:
        facts = waiting.record.facts
        app = facts.app_id
        if app != self._last_app:
            if self._last_app is not None:
                self._shared_until = monotonic() + _OTHERS_S
            self._last_app = app
        self._tenants.setdefault(facts.tenant, {}).setdefault(app, deque()).append(waiting)

    def take(self) -> list[WaitingLease]:
        """The next batch: one lease of each tenant in turn, of its apps in turn, until each has its share."""
        share = APP_SHARE if monotonic() < self._shared_until else LARGEST_BATCH
        alone = self._of_one_app()
        if alone is not None:
            return self._take_from(alone, share)
        batch: list[WaitingLease] = []
        taken: Counter[AppId] = Counter()
        turns = deque(self._tenants)
        while turns and len(batch) < LARGEST_BATCH:
            tenant = turns.popleft()
            apps = self._tenants.pop(tenant)
            app = next((name for name in apps if taken[name] < share), None)
            if app is not None:
                leases = apps.pop(app)
                lease = _next_awaited(leases)
                if lease is not None:
                    batch.append(lease)
                    taken[app] += 1
                if leases:
                    apps[app] = leases  # behind the tenant's other apps
                if apps:
                    turns.append(tenant)
            if apps:
                self._tenants[tenant] = apps  # behind the other tenants
        return batch

    def _of_one_app(self) -> deque[WaitingLease] | None:
        """All leases that wait, if they are one app's: then there is no turn to find."""
        if len(self._tenants) != 1:
            return None
        (apps,) = self._tenants.values()
        return next(iter(apps.values())) if len(apps) == 1 else None

    def _take_from(self, leases: deque[WaitingLease], most: int) -> list[WaitingLease]:
        batch: list[WaitingLease] = []
        while leases and len(batch) < most:
            waiting = leases.popleft()
            if not waiting.done.done():
                batch.append(waiting)
        if not leases:
            self._tenants.clear()
        return batch

    def take_all(self) -> list[WaitingLease]:
        queued = [lease for apps in self._tenants.values() for leases in apps.values() for lease in leases]
        self._tenants.clear()
        return queued


def _next_awaited(leases: deque[WaitingLease]) -> WaitingLease | None:
    while leases:
        waiting = leases.popleft()
        if not waiting.done.done():
            return waiting
    return None


class Written(NamedTuple):
    """By their place in the batch: the numbers of the leases that were written, and those that wait for a
    change of what they name."""

    leased: Mapping[int, int]
    busy: frozenset[int]


class TreeMissing(Exception):
    """The shard has no tree of this tenant yet. Nothing was written."""

    def __init__(self, tenant: Tenant) -> None:
        super().__init__(tenant)
        self.tenant = tenant


def awaited(batch: Sequence[WaitingLease], now: datetime) -> dict[int, LeaseRecord]:
    """The records by their place, without those whose callers have gone and whose keys or permits ended."""
    return {
        place: record
        for place, (record, done) in enumerate(batch)
        if not done.done() and now < record.facts.valid_until
    }


def delegated_uses(records: Iterable[LeaseRecord]) -> list[DelegatedUse]:
    return [record.facts.delegated for record in records if record.facts.delegated is not None]


def app_ids(records: Iterable[LeaseRecord]) -> set[str]:
    """The callers, and the apps under which they act."""
    ids: set[str] = set()
    for record in records:
        ids.add(record.facts.app_id)
        if record.facts.delegated is not None:
            ids.update(id for id, _ in record.facts.delegated.apps)
    return ids


def is_unchanged(
    record: LeaseRecord, connections: Revisions, apps: Revisions, delegations: Revisions
) -> bool:
    """Whether all that a lease was judged by is as it was. `connections` has leasable ones only."""
    facts = record.facts
    return (
        connections.get(facts.connection_id) == facts.connection
        and apps.get(facts.app_id) == facts.app
        and (facts.delegated is None or facts.delegated.holds(facts.tenant, delegations, apps))
    )


def by_tenant(records: Mapping[int, LeaseRecord]) -> list[tuple[Tenant, dict[int, LeaseRecord]]]:
    """Always in the same order: two ledgers never wait crosswise."""
    of_tenants: dict[Tenant, dict[int, LeaseRecord]] = {}
    for place, record in records.items():
        of_tenants.setdefault(record.facts.tenant, {})[place] = record
    return sorted(of_tenants.items(), key=lambda item: item[0])


def numbered(records: Mapping[int, LeaseRecord], size: int) -> dict[int, int]:
    """The numbers of these records, by their place in the batch, behind `size` others."""
    return {place: number for number, place in enumerate(records, size)}


def newest_generations(records: Iterable[LeaseRecord]) -> Mapping[tuple[str, str], int]:
    """By tenant and connection, in order."""
    newest: dict[tuple[str, str], int] = {}
    for record in records:
        key = (record.facts.tenant, record.facts.connection_id)
        newest[key] = max(newest.get(key, 0), record.facts.generation)
    return dict(sorted(newest.items()))


# --- last uses, which a batch writes too ----------------------------------------------------

# when each was last used: by tenant and id of a key or permit, or by tenant, app and connection of a lease
LastUses = Mapping[tuple[str, ...], datetime]

_USE_TABLES = {
    "key": ("app_key_use", ("key_id",)),
    "per": ("permit_use", ("permit_id",)),
    "app": ("lease_use", ("app_id", "connection_id")),
}
_OF_KEYS = "key"  # credentials and tokens authenticate requests as keys do


def _use_statement(table: str, ids: tuple[str, ...], values: str) -> str:
    key = ", ".join(("tenant", *ids))
    return (
        f"INSERT INTO {table} ({key}, used_at, revision) {values}"
        f" ON CONFLICT ({key}) DO UPDATE"
        f" SET used_at = excluded.used_at, revision = {table}.revision + 1"
        f" WHERE {table}.used_at < excluded.used_at"
    )


def _pg_values(ids: tuple[str, ...]) -> str:
    arrays = ", ".join(f"${place}::varchar[]" for place in range(1, len(ids) + 2))
    return f"SELECT *, 1 FROM unnest({arrays}, ${len(ids) + 2}::timestamptz[])"


_LITE_USES = {
    kind: _use_statement(table, ids, f"VALUES ({'?, ' * (len(ids) + 2)}1)")
    for kind, (table, ids) in _USE_TABLES.items()
}
_PG_USES = {kind: _use_statement(table, ids, _pg_values(ids)) for kind, (table, ids) in _USE_TABLES.items()}


def write_uses_sqlite(raw: Any, uses: LastUses) -> None:
    for kind, rows in _uses_by_table(uses):
        raw.executemany(_LITE_USES[kind], [(*key, sqlite_moment(at)) for *key, at in rows])


async def write_uses_postgresql(raw: Any, uses: LastUses) -> None:
    for kind, rows in _uses_by_table(uses):
        await raw.execute(_PG_USES[kind], *zip(*rows, strict=True))


def _uses_by_table(uses: LastUses) -> Iterable[tuple[str, list[tuple[Any, ...]]]]:
    """The rows of each table, in order, so that two ledgers never wait crosswise."""
    rows_of: dict[str, list[tuple[Any, ...]]] = {}
    for key, at in sorted(uses.items()):
        kind = key[1].partition("_")[0]
        rows_of.setdefault(kind if kind in _USE_TABLES else _OF_KEYS, []).append((*key, at))
    return sorted(rows_of.items())


def sqlite_moment(at: datetime) -> str:
    """As SQLAlchemy writes it: UTC, without the zone, always with microseconds."""
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
