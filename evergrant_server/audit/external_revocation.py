"""The one path for a provider's report: row, workflow's message and audit record in one transaction."""

from datetime import datetime

from evergrant_server.audit.hash_chain import append
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.base import Message, Provenance, RequestContext, SignalName
from evergrant_server.core.messages.connection import RevokedAtProvider, Rotate
from evergrant_server.core.outbox import signal_message
from evergrant_server.core.provider_events.external_revocation import (
    ProviderReport,
    ReportDecision,
    judge_report,
)
from evergrant_server.store import Transaction

_RECORDED = frozenset(
    {
        ReportDecision.ENDED,
        ReportDecision.REFRESH_REQUESTED,
        ReportDecision.OUTDATED,
        ReportDecision.UNTESTABLE,
    }
)


async def apply_external_event(
    tx: Transaction,
    connection: Connection,
    report: ProviderReport,
    context: RequestContext,
    now: datetime,
    provenance: Provenance | None = None,
) -> ReportDecision:
    """Judge the report by the rows as they are now, and write what follows from it.

    After the commit of ENDED no lease is issued: the row's revision has moved, and its reason
    refuses even a valid token. Raises Failure STORE_CONFLICT when the row changed meanwhile.
    """
    grant = await tx.grants.get(connection.tenant, connection.id)
    verdict = judge_report(connection, grant, report)
    if verdict is ReportDecision.ENDED:
        after = connection.rejected(ErrorCode.GRANT_REVOKED_ELSEWHERE, now)
        await tx.connections.replace(after, expected=connection.revision)
        event = RevokedAtProvider(generation=connection.generation, source=report.source, context=context)
        await _signal(tx, connection, SignalName.REVOKED_AT_PROVIDER, event, now)
    elif verdict is ReportDecision.REFRESH_REQUESTED:
        rotate = Rotate(reason=report.kind, context=context, seen_generation=connection.generation)
        await _signal(tx, connection, SignalName.ROTATE, rotate, now)
    if verdict in _RECORDED:
        await append(tx, _entry(connection, report, verdict, context, now, provenance))
    return verdict


async def _signal(
    tx: Transaction, connection: Connection, name: str, message: Message, now: datetime
) -> None:
    await tx.outbox.add(signal_message(connection.tenant, connection.id, name, message, now))


def _entry(
    connection: Connection,
    report: ProviderReport,
    verdict: ReportDecision,
    context: RequestContext,
    now: datetime,
    provenance: Provenance | None,
) -> AuditEntry:
    ended = verdict is ReportDecision.ENDED
    detail: dict[str, object] = {
        "source": report.source.value,
        "kind": report.kind,
        "at": report.at.isoformat() if report.at else None,
        "generation": connection.generation,
    }
    detail |= {"reason": ErrorCode.GRANT_REVOKED_ELSEWHERE.value} if ended else {"verdict": verdict.value}
    return AuditEntry(
        tenant=connection.tenant,
        at=now,
        action=AuditAction.REVOKED_AT_PROVIDER if ended else AuditAction.PROVIDER_REPORT_RECEIVED,
        object=connection.id,
        context=context,
        detail=detail,
        provenance=provenance,
    )
