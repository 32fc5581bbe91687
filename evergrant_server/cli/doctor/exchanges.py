"""Checks of the audit log's newest records: exchanges with providers, and consents without confirmation."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from evergrant_server import audit
from evergrant_server.cli.doctor import CheckFailed
from evergrant_server.cli.doctor.database import _ring, _store
from evergrant_server.core.audit import AuditAction, AuditRecord
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import FAILURES, ErrorCode
from evergrant_server.core.failure_kinds import Repairer
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.settings import Settings
from evergrant_server.store import Transaction

_READ = 1000  # records, the newest
_MOST_NAMED = 5
_UNCONFIRMED_FOR = timedelta(days=1)
_EXCHANGES = (
    *(AuditAction.CONSENT_FAILED, AuditAction.GRANT_INSTALLED),
    *(AuditAction.REFRESH_FAILED, AuditAction.GRANT_REFRESHED),
)
_CONSENTS = (AuditAction.CONSENT_UNCONFIRMED, AuditAction.CONSENT_CONFIRMED, AuditAction.GRANT_INSTALLED)


async def exchanges(settings: Settings) -> str:
    """Each integration's last exchange with its provider worked, unless it is the subject's to repair."""
    newest: dict[str, AuditRecord] = {}
    async with _newest_records(settings, _EXCHANGES) as (tx, records):
        of_connections = {record.object: record for record in records}
        for record in sorted(of_connections.values(), key=lambda it: it.at):
            connection = await tx.connections.get(record.tenant, ConnectionId(record.object))
            if connection is not None:
                newest[connection.integration] = record
    failed = {name: code for name, record in newest.items() if (code := _failure_of(record)) is not None}
    if not failed:
        return f"the last exchange of each of {len(newest)} integrations worked"
    named = [f"{name}: {code}, {FAILURES[code].meaning}" for name, code in list(failed.items())[:_MOST_NAMED]]
    first, code = next(iter(failed.items()))
    raise CheckFailed(
        f"the last exchange of {len(failed)} of {len(newest)} integrations failed: {' '.join(named)}",
        f"{FAILURES[code].repair} What the provider said: evergrant audit {newest[first].object}",
    )


def _failure_of(record: AuditRecord) -> ErrorCode | None:
    """The code of a failed exchange that its subject can't repair."""
    if record.action not in (AuditAction.CONSENT_FAILED, AuditAction.REFRESH_FAILED):
        return None
    reason = record.detail.get("reason")
    if reason not in set(ErrorCode) or FAILURES[ErrorCode(reason)].repairer is Repairer.SUBJECT:
        return None
    return ErrorCode(reason)


async def confirmations(settings: Settings) -> str:
    """Apps confirm the consents that come back to them: one that isn't confirmed is never exchanged."""
    since = SystemClock().now() - _UNCONFIRMED_FOR
    async with _newest_records(settings, _CONSENTS) as (_, records):
        newest = {record.object: record for record in records if record.at >= since}
    unbound = [it.object for it in newest.values() if it.action is AuditAction.CONSENT_UNCONFIRMED]
    if not unbound:
        return "every consent that came back within a day was confirmed"
    raise CheckFailed(
        f"{len(unbound)} consents came back within a day and their apps confirmed none of them in time: "
        f"{', '.join(unbound[:_MOST_NAMED])}",
        "Have the app confirm who consented: docs/guide/binding.md. In a terminal `evergrant connect` does",
    )


@asynccontextmanager
async def _newest_records(
    settings: Settings, actions: tuple[AuditAction, ...]
) -> AsyncIterator[tuple[Transaction, list[AuditRecord]]]:
    """Records of these actions among the newest of the tenant in EVERGRANT_TENANT, the oldest first."""
    async with _store(settings, _ring(settings)[0]) as store, store.read() as tx:
        found = await audit.newest_of_tenant(tx, Tenant(settings.tenant), actions, among=_READ)
        yield tx, found[::-1]
