"""The one path for news from the provider's side: row, workflow's message and audit in one transaction."""

from datetime import datetime

from evergrant_server.audit.chain import append
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connection import Connection
from evergrant_server.core.elsewhere import (
    SIGNAL_REVOKED_ELSEWHERE,
    NewsFromElsewhere,
    RevokedElsewhere,
    Verdict,
    judge_news,
)
from evergrant_server.core.errors import Code
from evergrant_server.core.message import Asked, Message, Provenance
from evergrant_server.core.messages import SIGNAL_ROTATE, Rotate
from evergrant_server.core.outbox import signal_to
from evergrant_server.store.tx import Tx

_RECORDED = frozenset({Verdict.ENDED, Verdict.ASKED, Verdict.OLDER, Verdict.UNTESTABLE})


async def hear(
    tx: Tx,
    connection: Connection,
    news: NewsFromElsewhere,
    asked: Asked,
    now: datetime,
    provenance: Provenance | None = None,
) -> Verdict:
    """Judge the news by what the store holds now, and do what follows.

    From the commit of ENDED on no lease leaves: the row's revision has moved, and its reason
    keeps even a valid token in. Raises Failure STORE_CONFLICT when the row changed meanwhile.
    """
    grant = await tx.grants.get(connection.tenant, connection.id)
    verdict = judge_news(connection, grant, news)
    if verdict is Verdict.ENDED:
        after = connection.rejected(Code.GRANT_REVOKED_ELSEWHERE, now)
        await tx.connections.replace(after, expected=connection.revision)
        told = RevokedElsewhere(generation=connection.generation, source=news.source, asked=asked)
        await _tell(tx, connection, SIGNAL_REVOKED_ELSEWHERE, told, now)
    elif verdict is Verdict.ASKED:
        rotate = Rotate(reason=news.kind, asked=asked, seen_generation=connection.generation)
        await _tell(tx, connection, SIGNAL_ROTATE, rotate, now)
    if verdict in _RECORDED:
        await append(tx, _entry(connection, news, verdict, asked, now, provenance))
    return verdict


async def _tell(tx: Tx, connection: Connection, name: str, said: Message, now: datetime) -> None:
    await tx.outbox.add(signal_to(connection.tenant, connection.id, name, said, now))


def _entry(
    connection: Connection,
    news: NewsFromElsewhere,
    verdict: Verdict,
    asked: Asked,
    now: datetime,
    provenance: Provenance | None,
) -> AuditEntry:
    ended = verdict is Verdict.ENDED
    detail: dict[str, object] = {
        "source": news.source.value,
        "kind": news.kind,
        "at": news.at.isoformat() if news.at else None,
        "generation": connection.generation,
    }
    detail |= {"reason": Code.GRANT_REVOKED_ELSEWHERE.value} if ended else {"verdict": verdict.value}
    return AuditEntry(
        tenant=connection.tenant,
        at=now,
        action=AuditAction.REVOKED_ELSEWHERE if ended else AuditAction.HEARD_FROM_PROVIDER,
        object=connection.id,
        asked=asked,
        detail=detail,
        provenance=provenance,
    )
