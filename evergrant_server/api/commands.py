"""What is done to one connection: refresh, reauthorize, revoke."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from evergrant_server.api.asking_again import consented_to
from evergrant_server.api.authentication import Caller
from evergrant_server.api.connections import view_of
from evergrant_server.api.device_codes import with_device
from evergrant_server.api.establishing import Establishing, Opened, mint, require_ready
from evergrant_server.api.guards import Asking, By, IdempotencyKey, With, visible_connection
from evergrant_server.api.idempotency import Answer, Once
from evergrant_server.api.outgoing import signal
from evergrant_server.api.parts import Parts
from evergrant_server.api.shapes import ReauthorizeBody, RefreshBody, RevokeBody
from evergrant_server.api.sources import asked_again
from evergrant_server.api.transactions import committed
from evergrant_server.api.views import ConnectionView
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connection import Connection, State
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.flow import Flow
from evergrant_server.core.messages import SIGNAL_REVOKE, Asked, Revoke
from evergrant_server.store import Tx

router = APIRouter(tags=["connections"])

_REVOKE_TRIES = 100


@router.post("/v1/connections/{connection_id}/refresh", response_model=ConnectionView)
async def refresh(
    connection_id: str,
    request: Request,
    parts: With,
    caller: Asking,
    asked: By,
    body: RefreshBody | None = None,
    key: IdempotencyKey = None,
) -> Response:
    """Have the grant made newer than `generation`; many who ask share one refresh.

    A report of a refused token refreshes once for that generation. The answer shows the
    generation there is now: the same as before when another refresh would not help.
    """
    once = Once(request, caller, key, body)
    async with parts.store.read() as tx:
        connection = await visible_connection(
            tx, caller, connection_id, Action.TOKEN, Action.CONNECT, Action.ADMIN
        )
        answer = await once.recall(tx)
        grant = await tx.grants.get(connection.tenant, connection.id)
    if answer is not None:
        return answer.response()
    report = body is not None and body.reason is not None
    seen = connection.generation
    if body is not None and body.seen is not None:
        seen = min(body.seen, seen)
    if report and seen == connection.generation:
        connection = await _noted(parts, caller, asked, connection)
    require_leasable(connection)
    # as new as it gets; once it is over, its workflow says who repairs it
    lasts = grant is not None and not grant.refreshable and grant.valid(parts.clock.now())
    if connection.generation <= seen and not lasts:
        ask = parts.freshening.reported if report else parts.freshening.refreshed
        await ask(connection.tenant, connection.id, seen, asked)

    async def show(tx: Tx) -> Answer:
        now_it_is = await view_of(tx, await visible_connection(tx, caller, connection_id))
        return Answer.of(200, now_it_is)

    return (await once.committed(parts, show)).response()


async def _noted(parts: Parts, caller: Caller, asked: Asked, reported: Connection) -> Connection:
    """Write that the token of this generation is reported, once: if no refresh helps, no lease leaves."""

    async def note(tx: Tx) -> Connection:
        connection = await visible_connection(tx, caller, reported.id)
        held = connection.state in (State.ACTIVE, State.NEEDS_REAUTH)
        known = connection.reported_generation == connection.generation
        if known or not held or connection.generation != reported.generation:
            return connection
        said = {"generation": connection.generation}
        await Establishing(parts, caller, asked).record(tx, AuditAction.TOKEN_REPORTED, connection.id, **said)
        return await tx.connections.replace(connection.token_reported(), expected=connection.revision)

    if reported.reported_generation == reported.generation:
        return reported
    return await committed(parts.store, note)


@router.post("/v1/connections/{connection_id}/reauthorize", response_model=ConnectionView)
async def reauthorize(
    connection_id: str,
    request: Request,
    parts: With,
    caller: Asking,
    asked: By,
    body: ReauthorizeBody | None = None,
    key: IdempotencyKey = None,
) -> Response:
    """A new connect link. What the connection holds stays until the subject has consented again."""
    once = Once(request, caller, key, body)
    wanted = body or ReauthorizeBody()

    async def ask(tx: Tx) -> Answer:
        connection = await visible_connection(tx, caller, connection_id, Action.CONNECT)
        connection = await asked_again(tx, parts, caller, asked, connection)
        opened = await _ask_again(tx, Establishing(parts, caller, asked), parts, connection, wanted)
        return Answer.of(200, await view_of(tx, connection, opened))

    answer = await once.committed(parts, ask)
    parts.relay.nudge()  # a flow that no browser begins is begun by a worker
    return (await with_device(parts, caller.tenant, answer)).response()


async def _ask_again(
    tx: Tx, establishing: Establishing, parts: Parts, connection: Connection, wanted: ReauthorizeBody
) -> Opened:
    if connection.state.final or connection.state is State.REVOKING:
        raise Failure(connection.reason or Code.CONNECTION_REVOKED, connection_id=connection.id)
    if connection.state is State.PENDING_CONSENT and connection.consent_deadline <= parts.clock.now():
        raise Failure(Code.CONSENT_EXPIRED, connection_id=connection.id)
    integration = await tx.integrations.get(connection.tenant, connection.integration_id)
    if integration is None:
        raise Failure(Code.NOT_FOUND)
    require_ready(integration)
    named, connection = connection, await consented_to(tx, connection)
    if connection is not named and (wanted.scopes, wanted.chain_scopes) != (None, None):
        detail = "Its scopes are chain_scopes of the connection it came with."
        raise Failure(Code.INVALID_REQUEST, detail, field="scopes")
    before = connection.requested_scopes or None
    scopes = await establishing.scopes(tx, integration, connection.subject, wanted.scopes or before)
    if connection.flow.static or (connection.flow is Flow.TOKEN_EXCHANGE and connection.source is None):
        raise Failure(Code.INVALID_REQUEST, "Revoke it, and begin one with the new credential.", field="flow")
    further = await establishing.chains(tx, integration, connection.subject, connection, wanted.chain_scopes)
    if connection.flow.mints:
        consent, url = await mint(tx, connection, scopes, establishing.asked, parts.clock.now()), None
    else:
        consent, url = await establishing.ask(tx, connection, scopes, wanted.return_to, further)
    await establishing.record(
        tx, AuditAction.REAUTHORIZE_ASKED, connection.id, consent_id=consent.id, scopes=list(scopes)
    )
    return Opened(named, False, consent if url else None, url)


@router.post("/v1/connections/{connection_id}/revoke", status_code=202, response_model=ConnectionView)
async def revoke(
    connection_id: str,
    request: Request,
    parts: With,
    caller: Asking,
    asked: By,
    body: RevokeBody | None = None,
    key: IdempotencyKey = None,
) -> Response:
    """Revoke, for good. From this answer on no lease leaves; the provider is told until it confirms."""
    return await _revoke(
        connection_id, parts, caller, asked, body or RevokeBody(), Once(request, caller, key, body)
    )


@router.delete("/v1/connections/{connection_id}", status_code=202, response_model=ConnectionView)
async def delete(connection_id: str, request: Request, parts: With, caller: Asking, asked: By) -> Response:
    """The same as revoke: a connection is never deleted without the provider being told."""
    once = Once(request, caller, None, None)
    return await _revoke(connection_id, parts, caller, asked, RevokeBody(reason="deleted"), once)


async def _revoke(
    connection_id: str, parts: Parts, caller: Caller, asked: Asked, body: RevokeBody, once: Once
) -> Response:
    async def write(tx: Tx) -> Answer:
        connection = await visible_connection(tx, caller, connection_id, Action.CONNECT, Action.ADMIN)
        after = await _written(tx, parts, caller, asked, connection, body.reason)
        return Answer.of(202, await view_of(tx, after))

    # however busy the row is, a revocation gets through
    answer = await once.committed(parts, write, tries=_REVOKE_TRIES)
    parts.relay.nudge()
    return answer.response()


async def _written(
    tx: Tx, parts: Parts, caller: Caller, asked: Asked, connection: Connection, reason: str
) -> Connection:
    """Store, outbox and audit in one transaction: a revocation needs nothing else to hold."""
    if connection.state.final or connection.state is State.REVOKING:
        return connection  # the first one holds; asking again changes nothing
    now = parts.clock.now()
    after = await tx.connections.replace(connection.revoke_asked(reason, now), expected=connection.revision)
    told = Revoke(reason=reason, asked=asked)
    await tx.outbox.add(signal(after, SIGNAL_REVOKE, told, now))
    await Establishing(parts, caller, asked).record(tx, AuditAction.REVOKE_ASKED, after.id, reason=reason)
    return after


def require_leasable(connection: Connection) -> None:
    """Raise Failure CONSENT_REQUIRED or what else keeps the connection from having a fresh grant."""
    match connection.state:
        case State.ACTIVE:
            return
        case State.PENDING_CONSENT:
            raise Failure(Code.CONSENT_REQUIRED, connection_id=connection.id)
        case _:
            raise Failure(connection.reason or Code.CONSENT_REQUIRED, connection_id=connection.id)
