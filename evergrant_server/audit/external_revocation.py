"""The one path for news from the provider's side: row, workflow's message and audit in one transaction."""

from datetime import datetime

from evergrant_server.audit.hash_chain import append
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.base import Message, Provenance, RequestContext
from evergrant_server.core.messages.connection import RevokedAtProvider, Rotate
from evergrant_server.core.messages.names import SignalName
from evergrant_server.core.outbox import signal_message
from evergrant_server.core.provider_events.external_revocation import (
    ProviderReport,
    ReportDecision,
    judge_report,
)
from evergrant_server.store.transactions import Transaction

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
    news: ProviderReport,
    asked: RequestContext,
    now: datetime,
    provenance: Provenance | None = None,
) -> ReportDecision:
    """Judge the news by what the store holds now, and do what follows.

    From the commit of ENDED on no lease leaves: the row's revision has moved, and its reason
    keeps even a valid token in. Raises Failure STORE_CONFLICT when the row changed meanwhile.
    """
    grant = await tx.grants.get(connection.tenant, connection.id)
    verdict = judge_report(connection, grant, news)
    if verdict is ReportDecision.ENDED:
        after = connection.rejected(ErrorCode.GRANT_REVOKED_ELSEWHERE, now)
        await tx.connections.replace(after, expected=connection.revision)
        event = RevokedAtProvider(generation=connection.generation, source=news.source, context=asked)
        await _signal(tx, connection, SignalName.REVOKED_AT_PROVIDER, event, now)
    elif verdict is ReportDecision.REFRESH_REQUESTED:
        rotate = Rotate(reason=news.kind, context=asked, seen_generation=connection.generation)
        await _signal(tx, connection, SignalName.ROTATE, rotate, now)
    if verdict in _RECORDED:
        await append(tx, _entry(connection, news, verdict, asked, now, provenance))
    return verdict


async def _signal(
    tx: Transaction, connection: Connection, name: str, message: Message, now: datetime
) -> None:
    await tx.outbox.add(signal_message(connection.tenant, connection.id, name, message, now))


def _entry(
    connection: Connection,
    news: ProviderReport,
    verdict: ReportDecision,
    asked: RequestContext,
    now: datetime,
    provenance: Provenance | None,
) -> AuditEntry:
    ended = verdict is ReportDecision.ENDED
    detail: dict[str, object] = {
        "source": news.source.value,
        "kind": news.kind,
        "at": news.at.isoformat() if news.at else None,
        "generation": connection.generation,
    }
    detail |= {"reason": ErrorCode.GRANT_REVOKED_ELSEWHERE.value} if ended else {"verdict": verdict.value}
    return AuditEntry(
        tenant=connection.tenant,
        at=now,
        action=AuditAction.REVOKED_AT_PROVIDER if ended else AuditAction.PROVIDER_REPORT_RECEIVED,
        object=connection.id,
        context=asked,
        detail=detail,
        provenance=provenance,
    )
