"""A batch of leases: what they were judged by is looked at once more, in the transaction that records them.

`lease_writer_sqlite` and `lease_writer_postgresql` write it, `lease_ledger` gathers it and answers the
callers. Statements are written out for each driver, because building them took longer than running them.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from evergrant_server.audit.delegated_leases import DelegatedUse, Revisions
from evergrant_server.audit.lease_queue import WaitingLease
from evergrant_server.audit.lease_record import LeaseRecord
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.ids import Tenant

# A valid token is leased while a new consent is awaited, too.
LEASABLE = frozenset({LifecycleState.ACTIVE.value, LifecycleState.NEEDS_REAUTH.value})
CONNECTIONS = "SELECT id, tenant, revision, generation, state FROM connection WHERE id "
APPS = (  # from a set of ids: PostgreSQL would plan `= ANY` anew each time
    "SELECT app.id, app.tenant, app.revision, app.disabled OR s.disabled FROM {}"
    " JOIN app USING (id) JOIN tenant_standing s ON s.tenant = app.tenant AND s.id = app.tenant"
)
HEAD = "SELECT count, last_hash, mac FROM audit_shard WHERE tenant = {} AND shard = {}"
RAISED_USAGE = (
    " ON CONFLICT (tenant, connection_id) DO UPDATE"
    " SET leased_generation = excluded.leased_generation, revision = usage.revision + 1"
    " WHERE usage.leased_generation < excluded.leased_generation"
)


class Written(NamedTuple):
    """The places of the leases that were written, and of those that wait for a change of what they name."""

    leased: frozenset[int]
    busy: frozenset[int]


class ChainMissing(Exception):
    """The shard has no chain of this tenant yet. Nothing was written."""

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


def by_tenant(records: Iterable[LeaseRecord]) -> list[tuple[Tenant, list[LeaseRecord]]]:
    """Always in the same order: two ledgers never wait crosswise."""
    of_tenants: dict[Tenant, list[LeaseRecord]] = {}
    for record in records:
        of_tenants.setdefault(record.facts.tenant, []).append(record)
    return sorted(of_tenants.items(), key=lambda item: item[0])


def newest_generations(records: Iterable[LeaseRecord]) -> Mapping[tuple[str, str], int]:
    """By tenant and connection, in order."""
    newest: dict[tuple[str, str], int] = {}
    for record in records:
        key = (record.facts.tenant, record.facts.connection_id)
        newest[key] = max(newest.get(key, 0), record.facts.generation)
    return dict(sorted(newest.items()))
