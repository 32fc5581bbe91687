"""What a provider's report leads to (introspection, security event, hook): row, signal and audit record."""

from datetime import datetime

from evergrant_server.audit.appending import append
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.base import Message, RequestContext
from evergrant_server.core.messages.connection import RevokedAtProvider, Rotate
from evergrant_server.core.messages.names import SignalName
from evergrant_server.core.outbox import signal_message
from evergrant_server.core.provider_events import (
    ProviderReport,
    ReportDecision,
    judge_report,
)
from evergrant_server.store import Transaction


async def apply_provider_report(
    tx: Transaction,
    connection: Connection,
    report: ProviderReport,
    context: RequestContext,
    now: datetime,
) -> ReportDecision:
    """Judge the report by the rows as they are now, and write what follows from it.

    After the commit of ENDED no lease is issued: the row's revision has moved, and its reason
    refuses even a valid token. Raises Failure STORE_CONFLICT when the row changed meanwhile.
    """
    grant = await tx.grants.get(connection.tenant, connection.id)
    told: tuple[SignalName, Message] | None = None
    verdict = judge_report(connection, grant, report)
    ended = verdict is ReportDecision.ENDED
    if ended:
        after = connection.rejected(ErrorCode.GRANT_REVOKED_ELSEWHERE, now)
        await tx.connections.replace(after, expected=connection.revision)
        event = RevokedAtProvider(generation=connection.generation, source=report.source, context=context)
        told = SignalName.REVOKED_AT_PROVIDER, event
    elif verdict is ReportDecision.REFRESH_REQUESTED:
        rotate = Rotate(reason=report.kind, context=context, seen_generation=connection.generation)
        told = SignalName.ROTATE, rotate
    if told is not None:
        await tx.outbox.add(signal_message(connection.tenant, connection.id, *told, now))
    if verdict is not ReportDecision.NOTHING_HELD:
        entry = AuditEntry(
            tenant=connection.tenant,
            at=now,
            action=AuditAction.REVOKED_AT_PROVIDER if ended else AuditAction.PROVIDER_REPORT_RECEIVED,
            object=connection.id,
            context=context,
            detail=_detail(connection, report, verdict),
        )
        await append(tx, entry)
    return verdict


def _detail(connection: Connection, report: ProviderReport, verdict: ReportDecision) -> dict[str, object]:
    ended = verdict is ReportDecision.ENDED
    return {
        "source": report.source.value,
        "kind": report.kind,
        "at": report.at.isoformat() if report.at else None,
        "generation": connection.generation,
        **({"reason": ErrorCode.GRANT_REVOKED_ELSEWHERE.value} if ended else {"verdict": verdict.value}),
    }
