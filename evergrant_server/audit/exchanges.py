"""Integrations' exchanges with their providers, from the audit log: the newest, and those that failed."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import select, text, tuple_
from sqlmodel import col

from evergrant_server.audit.bodies import record_of
from evergrant_server.audit.records import newest_of_tenant
from evergrant_server.core.audit import AuditAction, AuditRecord
from evergrant_server.core.errors import FAILURES, ErrorCode
from evergrant_server.core.errors.kinds import Repairer
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.provider_words import PROVIDER_SAID
from evergrant_server.core.single_use.recurring_errors import UNDECIDED
from evergrant_server.store import Transaction
from evergrant_server.store.audit_tables import NO_LEASE_CONDITION, AuditRow
from evergrant_server.store.connections.tables import ConnectionRow
from evergrant_server.store.database.rows import columns_equal, fetch_all

_READ = 1000  # records, the newest
_FAILED = (AuditAction.CONSENT_FAILED, AuditAction.REFRESH_FAILED)
_ANSWERED = (AuditAction.GRANT_INSTALLED, AuditAction.GRANT_REFRESHED, AuditAction.NEEDS_REAUTH)
_UNANSWERED = (ErrorCode.PROVIDER_ERROR, ErrorCode.PROVIDER_UNREACHABLE, ErrorCode.PROVIDER_RATE_LIMITED)


class Exchange(NamedTuple):
    """The newest exchange of an integration. `failure` is None if it worked, or is its subject's to repair.

    `unanswered` counts the refreshes in a row that met no answer, this one the last of them: they open a
    worker's circuit.
    """

    connection: ConnectionId
    at: datetime
    failure: ErrorCode | None
    unanswered: int


async def newest_exchanges(tx: Transaction, tenant: Tenant) -> dict[str, Exchange]:
    """By the integration's name, of those that had one lately."""
    records = await newest_of_tenant(tx, tenant, (*_FAILED, *_ANSWERED), among=_READ)
    names = await _integrations_of(tx, tenant, {record.object for record in records})
    of_integrations: dict[str, list[AuditRecord]] = {}
    for record in records:
        name = names.get(record.object)
        if name is not None:
            of_integrations.setdefault(name, []).append(record)
    return {name: _newest(own_records) for name, own_records in of_integrations.items()}


async def records_of_failures(
    tx: Transaction, tenant: Tenant, failed_at: Mapping[ConnectionId, datetime]
) -> dict[ConnectionId, AuditRecord]:
    """The records of these connections' failures at these moments that say more than the rows: the provider's
    words, or that nothing is decided."""
    if not failed_at:
        return {}
    places = tuple_(col(AuditRow.object), col(AuditRow.at)).in_([*failed_at.items()])
    mine = select(AuditRow).where(columns_equal(AuditRow, tenant=tenant), places, text(NO_LEASE_CONDITION))
    records = map(record_of, await fetch_all(tx.connection, mine))
    return {
        ConnectionId(record.object): record
        for record in records
        if {PROVIDER_SAID, UNDECIDED} & {*record.detail}
    }


async def _integrations_of(tx: Transaction, tenant: Tenant, ids: set[str]) -> dict[str, str]:
    """The names of these connections' integrations."""
    columns = (col(ConnectionRow.id), col(ConnectionRow.integration))
    mine = (col(ConnectionRow.tenant) == tenant, col(ConnectionRow.id).in_(ids))
    rows = await fetch_all(tx.connection, select(*columns).where(*mine))
    return {row["id"]: row["integration"] for row in rows}


def _newest(records: Sequence[AuditRecord]) -> Exchange:
    """The first record, the newest, with how often the provider gave no answer up to it."""
    newest, unanswered = records[0], 0
    for record in records:
        if record.action is AuditAction.CONSENT_FAILED:
            continue  # the exchange of a code passes no circuit
        if record.action is not AuditAction.REFRESH_FAILED or _reason(record) not in _UNANSWERED:
            break
        unanswered += 1
    return Exchange(ConnectionId(newest.object), newest.at, _failure_of(newest), unanswered)


def _reason(record: AuditRecord) -> ErrorCode | None:
    reason = record.detail.get("reason")
    return ErrorCode(reason) if isinstance(reason, str) and reason in set(ErrorCode) else None


def _failure_of(record: AuditRecord) -> ErrorCode | None:
    reason = _reason(record) if record.action in _FAILED else None
    return None if reason is None or FAILURES[reason].repairer is Repairer.SUBJECT else reason
