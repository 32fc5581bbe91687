"""`POST /v1/security-events/{receiver}`: a provider's news, authenticated by their signature alone.

What isn't believed writes nothing but a log line, so that nobody can fill a table or a log by
sending noise. What is believed is handled once, however often it comes.
"""

import hashlib
import logging
from datetime import datetime, timedelta

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from evergrant_server import audit
from evergrant_server import telemetry_metrics as metrics
from evergrant_server.api.guards import With
from evergrant_server.api.outgoing import fetch_keys
from evergrant_server.api.parts import Parts
from evergrant_server.api.tracing import trace_of
from evergrant_server.api.transactions import committed
from evergrant_server.audit.elsewhere import hear
from evergrant_server.core.access import Integration
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.elsewhere import NewsFromElsewhere, Source, Verdict
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.ids import ConnectionId, ReceiverId, is_id
from evergrant_server.core.marks import SUB, fact
from evergrant_server.core.messages import Asked
from evergrant_server.core.receivers import (
    ACCOUNT_IS_SUB,
    ACCOUNT_IS_SUBJECT,
    Mark,
    Receiver,
    ReceiverKind,
)
from evergrant_server.store import Tx
from evergrant_server.telemetry import say
from evergrant_server.telemetry_names import Event
from providers.events import VERIFIERS, Fact, Heard, Incoming, Refused, Trust, UnknownKey
from providers.events.base import ACCOUNT

log = logging.getLogger("evergrant.api")

router = APIRouter(tags=["security events"])

BODY_LIMIT = 64 * 1024  # bytes; a token has one or two thousand
_ASK_AGAIN = timedelta(minutes=5)  # a stranger can't make us read a transmitter's keys more often
_TRIES = 20


@router.post("/v1/security-events/{receiver_id}", status_code=202, response_class=JSONResponse)
async def receive(receiver_id: str, request: Request, parts: With) -> Response:
    """Take a security event token (RFC 8935), or a provider's own uninstall hook.

    202 once it is handled, or was before. 400 with `err` and `description` when it isn't believed.
    """
    receiver, integration, trust = await _known(parts, receiver_id)
    body = await request.body()
    try:
        if len(body) > BODY_LIMIT:
            raise Refused("invalid_request", "The body is too large.")
        heard = VERIFIERS[receiver.kind](Incoming(_headers(request), body, parts.clock.now()), trust)
    except Refused as refused:
        return _refusal(receiver, refused)
    except UnknownKey:
        return await _unknown_key(parts, receiver, trace_of(request).asked_by(_by(integration)))
    if heard.answer is not None:
        return JSONResponse(heard.answer)
    if heard.facts or heard.noted:
        await _handle(parts, receiver, integration, heard, trace_of(request).asked_by(_by(integration)))
    metrics.security_event("heard")
    return Response(status_code=202 if receiver.kind is ReceiverKind.SET else 200)


async def _known(parts: Parts, receiver_id: str) -> tuple[Receiver, Integration, Trust]:
    """Raises Failure NOT_FOUND, KEY_UNAVAILABLE."""
    if not is_id(receiver_id, "rcv"):
        raise Failure(Code.NOT_FOUND)
    async with parts.store.read() as tx:
        receiver = await tx.receivers.find(ReceiverId(receiver_id))
        if receiver is None:
            raise Failure(Code.NOT_FOUND)
        integration = await tx.integrations.get(receiver.tenant, receiver.integration_id)
        if integration is None:
            raise Failure(Code.NOT_FOUND)
        secret = await tx.receivers.secret(receiver)
    discovered = integration.endpoints.issuer if integration.endpoints else None
    issuers = {receiver.issuer, integration.issuer, discovered} - {None}
    trust = Trust(
        secret=secret,
        issuer=receiver.issuer,
        issuers=frozenset(str(it) for it in issuers),
        audience=receiver.audience,
        client_id=integration.client_id,
        keys=receiver.keys,
    )
    return receiver, integration, trust


def _headers(request: Request) -> dict[str, str]:
    """A name that comes twice counts as its first: a signature over the body is judged once."""
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        headers.setdefault(name.lower(), value)
    return headers


def _by(integration: Integration) -> str:
    return f"provider:{integration.provider}"


def _refusal(receiver: Receiver, refused: Refused) -> Response:
    """RFC 8935 section 2.4."""
    say(log, logging.INFO, Event.SECURITY_EVENT_REFUSED, refused.err, object=receiver.id)
    metrics.security_event(refused.err)
    return JSONResponse({"err": refused.err, "description": refused.description}, 400)


async def _unknown_key(parts: Parts, receiver: Receiver, asked: Asked) -> Response:
    """Have the transmitter's keys read again, now and then; meanwhile it may send the token once more."""
    now = parts.clock.now()
    last = receiver.keys_asked_at
    waits = last is not None and (receiver.keys_at is None or receiver.keys_at < last)
    if last is not None and now - last < _ASK_AGAIN and not waits:
        return _refusal(receiver, Refused("invalid_key", "The token's key is none of the transmitter's."))
    if last is None or now - last >= _ASK_AGAIN:
        try:
            async with parts.store.write() as tx:
                after = receiver.model_copy(update={"keys_asked_at": now})
                await tx.receivers.replace(after, expected=receiver.revision)
                await tx.outbox.add(fetch_keys(after, asked, now))
        except Failure as failure:
            if failure.code is not Code.STORE_CONFLICT:
                raise  # and if it is, another request has asked at the same moment
        parts.relay.nudge()
    raise Failure(Code.PROVIDER_UNREACHABLE, "The transmitter's keys are being read.", retry_after=10.0)


async def _handle(
    parts: Parts, receiver: Receiver, integration: Integration, heard: Heard, asked: Asked
) -> None:
    """Tell every connection that is meant, then remember the event: killed in between, it comes again."""
    now = parts.clock.now()
    event = hashlib.sha256(heard.id.encode()).hexdigest()
    async with parts.store.read() as tx:
        if await tx.receivers.received(receiver, event):
            return
        meant = [(it, await _meant(tx, receiver, it)) for it in heard.facts]
    verdicts: list[Verdict] = []
    for it, connections in meant:
        for connection_id in connections:
            verdicts.append(await _tell(parts, receiver, connection_id, it, asked, now))

    async def remember(tx: Tx) -> None:
        if await tx.receivers.note(receiver, event, now):
            await audit.append(tx, _entry(receiver, integration, heard, verdicts, asked, now))

    await committed(parts.store, remember)
    parts.relay.nudge()


async def _meant(tx: Tx, receiver: Receiver, it: Fact) -> list[ConnectionId]:
    """Connections of the receiver's own integration, and no other's."""
    found: dict[ConnectionId, None] = {}
    tenant, integration = receiver.tenant, receiver.integration_id
    for marks in it.accounts:
        accounts = [mark.value for mark in marks if mark.name == ACCOUNT]
        if accounts and receiver.account_in == ACCOUNT_IS_SUBJECT:
            bearers = await tx.marks.of_subject(tenant, integration, accounts[0])
        else:
            wanted = frozenset(_resolved(receiver, mark) for mark in marks)
            bearers = await tx.marks.bearers(tenant, integration, wanted)
        found |= dict.fromkeys(bearers)
    return list(found)


def _resolved(receiver: Receiver, mark: Mark) -> Mark:
    if mark.name != ACCOUNT:
        return mark
    name = SUB if receiver.account_in == ACCOUNT_IS_SUB else fact(receiver.account_in)
    return Mark(name, mark.value)


async def _tell(
    parts: Parts, receiver: Receiver, connection_id: ConnectionId, it: Fact, asked: Asked, now: datetime
) -> Verdict:
    """One transaction a connection: its row, its workflow's message and its record."""
    source = Source.SECURITY_EVENT if receiver.kind is ReceiverKind.SET else Source.HOOK
    news = NewsFromElsewhere(source=source, kind=it.kind, weight=it.weight, at=it.at, issued=it.issued)

    async def tell(tx: Tx) -> Verdict:
        connection = await tx.connections.get(receiver.tenant, connection_id)
        if connection is None:
            return Verdict.NOTHING_HELD
        return await hear(tx, connection, news, asked, now)

    return await committed(parts.store, tell, tries=_TRIES)


def _entry(
    receiver: Receiver,
    integration: Integration,
    heard: Heard,
    verdicts: list[Verdict],
    asked: Asked,
    now: datetime,
) -> AuditEntry:
    told = {it.value: verdicts.count(it) for it in Verdict if it in verdicts}
    kinds = sorted({it.kind for it in heard.facts})
    return AuditEntry(
        tenant=receiver.tenant,
        at=now,
        action=AuditAction.SECURITY_EVENT,
        object=integration.id,
        asked=asked,
        detail={"receiver": receiver.id, "facts": kinds, "connections": told, **heard.noted},
    )
