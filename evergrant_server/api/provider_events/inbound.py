"""`POST /v1/security-events/{receiver}`: events of providers, authenticated by signature.

An event that fails verification writes one log line and no row, so that unauthenticated requests
can't fill a table. A verified event is handled once, however often the provider sends it.
"""

import hashlib
import logging
from datetime import datetime, timedelta

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from evergrant_server.access.context import ApiContext
from evergrant_server.access.transactions import record, run_transaction
from evergrant_server.api.http.call import ApiDep
from evergrant_server.api.provider_events.people import tell_of_people
from evergrant_server.api.provider_events.receivers import request_keys
from evergrant_server.audit.provider_reports import apply_provider_report
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.account import SUB
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, ReceiverId, is_id
from evergrant_server.core.integrations import Integration
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.model import CheckedModel
from evergrant_server.core.provider_events import (
    ACCOUNT_IS_SUB,
    ACCOUNT_IS_SUBJECT,
    AccountIdentifier,
    ProviderReport,
    Receiver,
    ReceiverKind,
    ReportDecision,
    ReportSource,
    fact_name,
)
from evergrant_server.problems import require_found
from evergrant_server.store import Transaction
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.logs import LogEvent, log_event
from evergrant_server.telemetry.traces import trace_of
from providers.events.base import (
    ACCOUNT_ID,
    EventRejected,
    EventRequest,
    EventTrust,
    ProviderEvent,
    VerifiedEvents,
)
from providers.events.verifiers import VERIFIERS
from providers.responses.signing_keys import UnknownKey

log = logging.getLogger("evergrant.api")

router = APIRouter(tags=["security events"])

BODY_LIMIT = 64 * 1024  # bytes; a security event token has 1 to 2 KiB
_KEY_FETCH_INTERVAL = timedelta(minutes=5)  # limits the key fetches that an unauthenticated request can cause
_ATTEMPTS = 20


class EventRefusal(CheckedModel):
    """An error response of RFC 8935 section 2.4."""

    err: str
    description: str


_BODIES = {"application/secevent+jwt": {"schema": {"type": "string"}}, "application/json": {"schema": {}}}


@router.post(
    "/v1/security-events/{receiver_id}",
    status_code=202,
    response_class=Response,
    responses={200: {"description": "The same, to a provider's own webhook"}, 400: {"model": EventRefusal}},
    openapi_extra={"requestBody": {"content": _BODIES}},
)
async def receive_event(receiver_id: str, request: Request, api: ApiDep) -> Response:
    """Receive a security event token (RFC 8935), or a provider's own webhook.

    202 once it is handled, also when it was before. 400 with `err` and `description` if its
    verification fails.
    """
    receiver, integration, trust = await _load_receiver(api, receiver_id)
    context = trace_of(request).request_context(f"provider:{integration.provider}")
    body = await request.body()
    try:
        if len(body) > BODY_LIMIT:
            raise EventRejected("invalid_request", "The body is too large.")
        # of a repeated header the first value
        verified = VERIFIERS[receiver.kind](
            EventRequest(dict(reversed(request.headers.items())), body, api.clock.now()), trust
        )
    except EventRejected as refused:
        return _refusal_response(receiver, refused)
    except UnknownKey:
        return await _refetch_keys(api, receiver, context)
    if verified.reply is not None:
        return JSONResponse(verified.reply)
    if verified.events or verified.audit_detail:
        await _deliver(api, receiver, integration, verified, context)
    metrics.count(metrics.SECURITY_EVENTS, "accepted")
    return Response(status_code=202 if receiver.kind is ReceiverKind.SET else 200)


async def _load_receiver(api: ApiContext, receiver_id: str) -> tuple[Receiver, Integration, EventTrust]:
    """Raises Failure NOT_FOUND, KEY_UNAVAILABLE."""
    if not is_id(receiver_id, "rcv"):
        raise Failure(ErrorCode.NOT_FOUND)
    async with api.store.read() as tx:
        receiver = require_found(await tx.receivers.find_in_any_tenant(ReceiverId(receiver_id)))
        integration = require_found(await tx.integrations.get(receiver.tenant, receiver.integration_id))
        secret = await tx.receivers.secret(receiver)
    discovered = integration.endpoints.issuer if integration.endpoints else None
    issuers = {receiver.issuer, integration.issuer, discovered} - {None}
    trust = EventTrust(
        secret=secret,
        issuer=receiver.issuer,
        issuers=frozenset(str(issuer) for issuer in issuers),
        audience=receiver.audience,
        client_id=integration.client_id,
        keys=receiver.keys,
    )
    return receiver, integration, trust


def _refusal_response(receiver: Receiver, refused: EventRejected) -> Response:
    """The error response of RFC 8935 section 2.4."""
    log_event(log, logging.INFO, LogEvent.SECURITY_EVENT_REFUSED, refused.error, object=receiver.id)
    metrics.count(metrics.SECURITY_EVENTS, refused.error)
    return JSONResponse({"err": refused.error, "description": refused.description}, 400)


async def _refetch_keys(api: ApiContext, receiver: Receiver, context: RequestContext) -> Response:
    """Have a worker fetch the transmitter's keys, and ask the transmitter to repeat the event."""
    now = api.clock.now()
    last = receiver.keys_requested_at
    waits = last is not None and (receiver.keys_at is None or receiver.keys_at < last)
    if last is not None and now - last < _KEY_FETCH_INTERVAL and not waits:
        why = "The token's key is not one of the transmitter's keys."
        return _refusal_response(receiver, EventRejected("invalid_key", why))
    if last is None or now - last >= _KEY_FETCH_INTERVAL:
        try:
            async with api.store.write() as tx:
                await request_keys(tx, receiver, context, now)
        except Failure as failure:
            if failure.code is not ErrorCode.STORE_CONFLICT:
                raise  # a concurrent request has requested the keys
        api.relay.notify()
    why = "The transmitter's keys are being fetched."
    raise Failure(ErrorCode.PROVIDER_UNREACHABLE, why, retry_after=10.0)


async def _deliver(
    api: ApiContext,
    receiver: Receiver,
    integration: Integration,
    verified: VerifiedEvents,
    context: RequestContext,
) -> None:
    """Report to every affected connection, then record the event: after a crash it is sent again."""
    now = api.clock.now()
    event = hashlib.sha256(verified.id.encode()).hexdigest()
    async with api.store.read() as tx:
        if await tx.receivers.is_known_event(receiver, event):
            return
        affected = [(fact, await _affected_connections(tx, receiver, fact)) for fact in verified.events]
    verdicts: list[ReportDecision] = []
    for fact, connections in affected:
        for connection_id in connections:
            verdicts.append(await _report_to_connection(api, receiver, connection_id, fact, context, now))
    people = await tell_of_people(api, receiver, integration, verified.events, context)

    async def remember(tx: Transaction) -> None:
        if await tx.receivers.record_event(receiver, event, now):
            counts = {
                verdict.value: verdicts.count(verdict) for verdict in ReportDecision if verdict in verdicts
            }
            kinds = sorted({fact.kind for fact in verified.events})
            detail = {"receiver": receiver.id, "facts": kinds, "connections": counts, **verified.audit_detail}
            detail |= people
            action = AuditAction.SECURITY_EVENT
            await record(tx, receiver.tenant, action, integration.id, context, now, **detail)

    await run_transaction(api.store, remember)
    api.relay.notify()


async def _affected_connections(
    tx: Transaction, receiver: Receiver, event: ProviderEvent
) -> list[ConnectionId]:
    """The affected connections, of the receiver's own integration only."""
    connections: dict[ConnectionId, None] = {}
    tenant, integration = receiver.tenant, receiver.integration_id
    for identifiers in event.accounts:
        accounts = [identifier.value for identifier in identifiers if identifier.name == ACCOUNT_ID]
        if accounts and receiver.account_in == ACCOUNT_IS_SUBJECT:
            bearers = await tx.account_identifiers.connections_of_subject(tenant, integration, accounts[0])
        else:
            wanted = frozenset(_resolve_identifier(receiver, identifier) for identifier in identifiers)
            bearers = await tx.account_identifiers.connections_identified_by(tenant, integration, wanted)
        connections |= dict.fromkeys(bearers)
    return list(connections)


def _resolve_identifier(receiver: Receiver, identifier: AccountIdentifier) -> AccountIdentifier:
    if identifier.name != ACCOUNT_ID:
        return identifier
    name = SUB if receiver.account_in == ACCOUNT_IS_SUB else fact_name(receiver.account_in)
    return AccountIdentifier(name, identifier.value)


async def _report_to_connection(
    api: ApiContext,
    receiver: Receiver,
    connection_id: ConnectionId,
    event: ProviderEvent,
    context: RequestContext,
    now: datetime,
) -> ReportDecision:
    """Write the connection's state, its workflow's message and the audit record in one transaction."""
    source = ReportSource.SECURITY_EVENT if receiver.kind is ReceiverKind.SET else ReportSource.HOOK
    report = ProviderReport(
        source=source,
        kind=event.kind,
        certainty=event.certainty,
        at=event.at,
        at_is_issue_time=event.at_is_issue_time,
    )

    async def tell(tx: Transaction) -> ReportDecision:
        connection = await tx.connections.get(receiver.tenant, connection_id)
        if connection is None:
            return ReportDecision.NOTHING_HELD
        return await apply_provider_report(tx, connection, report, context, now)

    return await run_transaction(api.store, tell, tries=_ATTEMPTS)
