"""What is done to one connection: refresh, reauthorize, revoke."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from evergrant_server.api.connections.create import (
    ConnectionSetup,
    ConnectionWithLink,
    request_client_grant,
    require_ready,
)
from evergrant_server.api.connections.device_codes import add_device_code
from evergrant_server.api.connections.reauthorization import consenting_connection
from evergrant_server.api.connections.routes import connection_view
from evergrant_server.api.connections.source_tokens import take_over_exchange
from evergrant_server.api.http.authentication import Caller
from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.dependencies import (
    CallerDep,
    ContextDep,
    IdempotencyKey,
    RequestContextDep,
    visible_connection,
)
from evergrant_server.api.http.idempotency import CommandResponse, IdempotentCommand
from evergrant_server.api.http.outbox_messages import connection_signal_message
from evergrant_server.api.http.requests import ReauthorizeBody, RefreshBody, RevokeBody
from evergrant_server.api.http.responses import ConnectionView
from evergrant_server.api.http.transactions import run_transaction
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.connection import Revoke
from evergrant_server.core.messages.names import SignalName
from evergrant_server.store import Transaction

router = APIRouter(tags=["connections"])

_REVOKE_ATTEMPTS = 100


@router.post("/v1/connections/{connection_id}/refresh", response_model=ConnectionView)
async def refresh_connection(
    connection_id: str,
    request: Request,
    parts: ContextDep,
    caller: CallerDep,
    asked: RequestContextDep,
    body: RefreshBody | None = None,
    key: IdempotencyKey = None,
) -> Response:
    """Have the grant made newer than `generation`; many who ask share one refresh.

    A report of a refused token refreshes once for that generation. The answer shows the
    generation there is now: the same as before when another refresh would not help.
    """
    once = IdempotentCommand(request, caller, key, body)
    async with parts.store.read() as tx:
        connection = await visible_connection(
            tx, caller, connection_id, Action.TOKEN, Action.CONNECT, Action.ADMIN
        )
        answer = await once.stored_response(tx)
        grant = await tx.grants.get(connection.tenant, connection.id)
    if answer is not None:
        return answer.response()
    report = body is not None and body.reason is not None
    seen = connection.generation
    if body is not None and body.seen_by_caller is not None:
        seen = min(body.seen_by_caller, seen)
    if report and seen == connection.generation:
        connection = await _noted(parts, caller, asked, connection)
    require_leasable(connection)
    # as new as it gets; once it is over, its workflow says who repairs it
    lasts = grant is not None and not grant.refreshable and grant.is_valid(parts.clock.now())
    if connection.generation <= seen and not lasts:
        ask = parts.freshening.refresh_refused_token if report else parts.freshening.require_refreshed
        await ask(connection.tenant, connection.id, seen, asked)

    async def show(tx: Transaction) -> CommandResponse:
        now_it_is = await connection_view(tx, await visible_connection(tx, caller, connection_id))
        return CommandResponse.from_view(200, now_it_is)

    return (await once.run(parts, show)).response()


async def _noted(
    parts: ApiContext, caller: Caller, asked: RequestContext, reported: Connection
) -> Connection:
    """Write that the token of this generation is reported, once: if no refresh helps, no lease leaves."""

    async def note(tx: Transaction) -> Connection:
        connection = await visible_connection(tx, caller, reported.id)
        held = connection.state in (LifecycleState.ACTIVE, LifecycleState.NEEDS_REAUTH)
        known = connection.reported_generation == connection.generation
        if known or not held or connection.generation != reported.generation:
            return connection
        said = {"generation": connection.generation}
        await ConnectionSetup(parts, caller, asked).record(
            tx, AuditAction.TOKEN_REPORTED, connection.id, **said
        )
        return await tx.connections.replace(connection.token_reported(), expected=connection.revision)

    if reported.reported_generation == reported.generation:
        return reported
    return await run_transaction(parts.store, note)


@router.post("/v1/connections/{connection_id}/reauthorize", response_model=ConnectionView)
async def reauthorize_connection(
    connection_id: str,
    request: Request,
    parts: ContextDep,
    caller: CallerDep,
    asked: RequestContextDep,
    body: ReauthorizeBody | None = None,
    key: IdempotencyKey = None,
) -> Response:
    """A new connect link. What the connection holds stays until the subject has consented again."""
    once = IdempotentCommand(request, caller, key, body)
    wanted = body or ReauthorizeBody()

    async def ask(tx: Transaction) -> CommandResponse:
        connection = await visible_connection(tx, caller, connection_id, Action.CONNECT)
        connection = await take_over_exchange(tx, parts, caller, asked, connection)
        opened = await _request_new_consent(
            tx, ConnectionSetup(parts, caller, asked), parts, connection, wanted
        )
        return CommandResponse.from_view(200, await connection_view(tx, connection, opened))

    answer = await once.run(parts, ask)
    parts.relay.notify()  # a flow that no browser begins is begun by a worker
    return (await add_device_code(parts, caller.tenant, answer)).response()


async def _request_new_consent(
    tx: Transaction,
    establishing: ConnectionSetup,
    parts: ApiContext,
    connection: Connection,
    wanted: ReauthorizeBody,
) -> ConnectionWithLink:
    if connection.state.is_final or connection.state is LifecycleState.REVOKING:
        raise Failure(connection.reason or ErrorCode.CONNECTION_REVOKED, connection_id=connection.id)
    if (
        connection.state is LifecycleState.PENDING_CONSENT
        and connection.consent_deadline <= parts.clock.now()
    ):
        raise Failure(ErrorCode.CONSENT_EXPIRED, connection_id=connection.id)
    integration = await tx.integrations.get(connection.tenant, connection.integration_id)
    if integration is None:
        raise Failure(ErrorCode.NOT_FOUND)
    require_ready(integration)
    named, connection = connection, await consenting_connection(tx, connection)
    if connection is not named and (wanted.scopes, wanted.slot_scopes) != (None, None):
        detail = "Its scopes are slot_scopes of the connection it came with."
        raise Failure(ErrorCode.INVALID_REQUEST, detail, field="scopes")
    before = connection.requested_scopes or None
    scopes = await establishing.permitted_scopes(tx, integration, connection.subject, wanted.scopes or before)
    if connection.flow.is_static or (connection.flow is Flow.TOKEN_EXCHANGE and connection.source is None):
        raise Failure(
            ErrorCode.INVALID_REQUEST, "Revoke it, and begin one with the new credential.", field="flow"
        )
    further = await establishing.permitted_slot_scopes(
        tx, integration, connection.subject, connection, wanted.slot_scopes
    )
    if connection.flow.is_client_grant:
        consent, url = (
            await request_client_grant(
                tx, connection, scopes, establishing.request_context, parts.clock.now()
            ),
            None,
        )
    else:
        consent, url = await establishing.request_consent(tx, connection, scopes, wanted.return_to, further)
    await establishing.record(
        tx, AuditAction.REAUTHORIZATION_REQUESTED, connection.id, consent_id=consent.id, scopes=list(scopes)
    )
    return ConnectionWithLink(named, False, consent if url else None, url)


@router.post("/v1/connections/{connection_id}/revoke", status_code=202, response_model=ConnectionView)
async def revoke_connection(
    connection_id: str,
    request: Request,
    parts: ContextDep,
    caller: CallerDep,
    asked: RequestContextDep,
    body: RevokeBody | None = None,
    key: IdempotencyKey = None,
) -> Response:
    """Revoke, for good. From this answer on no lease leaves; the provider is told until it confirms."""
    return await _revoke(
        connection_id,
        parts,
        caller,
        asked,
        body or RevokeBody(),
        IdempotentCommand(request, caller, key, body),
    )


@router.delete("/v1/connections/{connection_id}", status_code=202, response_model=ConnectionView)
async def delete_connection(
    connection_id: str, request: Request, parts: ContextDep, caller: CallerDep, asked: RequestContextDep
) -> Response:
    """The same as revoke: a connection is never deleted without the provider being told."""
    once = IdempotentCommand(request, caller, None, None)
    return await _revoke(connection_id, parts, caller, asked, RevokeBody(reason="deleted"), once)


async def _revoke(
    connection_id: str,
    parts: ApiContext,
    caller: Caller,
    asked: RequestContext,
    body: RevokeBody,
    once: IdempotentCommand,
) -> Response:
    async def write(tx: Transaction) -> CommandResponse:
        connection = await visible_connection(tx, caller, connection_id, Action.CONNECT, Action.ADMIN)
        after = await _begin_revocation(tx, parts, caller, asked, connection, body.reason)
        return CommandResponse.from_view(202, await connection_view(tx, after))

    # however busy the row is, a revocation gets through
    answer = await once.run(parts, write, tries=_REVOKE_ATTEMPTS)
    parts.relay.notify()
    return answer.response()


async def _begin_revocation(
    tx: Transaction,
    parts: ApiContext,
    caller: Caller,
    asked: RequestContext,
    connection: Connection,
    reason: str,
) -> Connection:
    """Store, outbox and audit in one transaction: a revocation needs nothing else to hold."""
    if connection.state.is_final or connection.state is LifecycleState.REVOKING:
        return connection  # the first one holds; asking again changes nothing
    now = parts.clock.now()
    after = await tx.connections.replace(
        connection.revocation_requested(reason, now), expected=connection.revision
    )
    told = Revoke(reason=reason, context=asked)
    await tx.outbox.add(connection_signal_message(after, SignalName.REVOKE, told, now))
    await ConnectionSetup(parts, caller, asked).record(
        tx, AuditAction.REVOCATION_REQUESTED, after.id, reason=reason
    )
    return after


def require_leasable(connection: Connection) -> None:
    """Raise Failure CONSENT_REQUIRED or what else keeps the connection from having a fresh grant."""
    match connection.state:
        case LifecycleState.ACTIVE:
            return
        case LifecycleState.PENDING_CONSENT:
            raise Failure(ErrorCode.CONSENT_REQUIRED, connection_id=connection.id)
        case _:
            raise Failure(connection.reason or ErrorCode.CONSENT_REQUIRED, connection_id=connection.id)
