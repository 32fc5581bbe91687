"""Commands on a connection: reauthorize and revoke."""

from datetime import datetime

from fastapi import APIRouter, Request
from starlette.responses import Response

from evergrant_server.api.connections.consents import request_client_grant, request_consent
from evergrant_server.api.connections.device_codes import add_device_code
from evergrant_server.api.connections.models import ConnectionView, ReauthorizeBody, RevokeBody
from evergrant_server.api.connections.reauthorization import ConnectionWithLink, consenting_connection
from evergrant_server.api.connections.scopes import permitted_scopes, permitted_slot_scopes
from evergrant_server.api.connections.source_tokens import take_over_exchange
from evergrant_server.api.connections.view import connection_view
from evergrant_server.api.http.audit_records import record
from evergrant_server.api.http.authentication import Caller
from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.dependencies import (
    ApiDep,
    CallerDep,
    ContextDep,
    IdempotencyKey,
    visible_connection,
)
from evergrant_server.api.http.idempotency import CommandResponse, IdempotentCommand
from evergrant_server.api.http.outbox_messages import connection_signal_message
from evergrant_server.api.http.problems import require_found
from evergrant_server.api.integrations.definitions import integration_spec, require_ready
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.base import RequestContext, SignalName
from evergrant_server.core.messages.connection import Revoke
from evergrant_server.store import Transaction

router = APIRouter(tags=["connections"])

_REVOKE_ATTEMPTS = 100


@router.post("/v1/connections/{connection_id}/reauthorize", response_model=ConnectionView)
async def reauthorize_connection(
    connection_id: str,
    request: Request,
    api: ApiDep,
    caller: CallerDep,
    context: ContextDep,
    body: ReauthorizeBody | None = None,
    key: IdempotencyKey = None,
) -> Response:
    """A new connect link. The current grant stays until the subject has consented again."""
    command = IdempotentCommand(request, caller, key, body)
    wanted = body or ReauthorizeBody()

    async def reauthorize(tx: Transaction) -> CommandResponse:
        connection = await visible_connection(tx, caller, connection_id, Action.CONNECT)
        connection = await take_over_exchange(tx, api, caller, context, connection)
        renewed = await _request_new_consent(tx, api, caller, context, connection, wanted)
        return CommandResponse.from_view(200, await connection_view(tx, connection, renewed))

    response = await command.run(api, reauthorize)
    return (await add_device_code(api, caller.tenant, response)).response()


async def _request_new_consent(
    tx: Transaction,
    api: ApiContext,
    caller: Caller,
    context: RequestContext,
    named: Connection,
    wanted: ReauthorizeBody,
) -> ConnectionWithLink:
    now = api.clock.now()
    _require_consentable(named, now)
    integration = require_found(await tx.integrations.get(named.tenant, named.integration_id))
    require_ready(integration)
    connection = await consenting_connection(tx, named)
    if connection is not named and (wanted.scopes, wanted.slot_scopes) != (None, None):
        detail = "Its scopes are slot_scopes of the connection that it shares a consent with."
        raise Failure(ErrorCode.INVALID_REQUEST, detail, field="scopes")
    spec = await integration_spec(tx, api.registry, integration)
    requested = wanted.scopes or connection.requested_scopes
    scopes = permitted_scopes(caller, integration, spec, connection.subject, requested)
    if connection.flow.is_static or (connection.flow is Flow.TOKEN_EXCHANGE and connection.source is None):
        detail = "Revoke it, and create one with the new credential."
        raise Failure(ErrorCode.INVALID_REQUEST, detail, field="flow")
    slots = await permitted_slot_scopes(
        tx, caller, integration, spec, connection.subject, connection, wanted.slot_scopes
    )
    url = None
    if connection.flow.is_client_grant:
        consent = await request_client_grant(tx, connection, scopes, context, now)
    else:
        consent, url = await request_consent(
            tx, api, caller, context, connection, scopes, wanted.return_to, slots
        )
    detail = {"consent_id": consent.id, "scopes": list(scopes)}
    action = AuditAction.REAUTHORIZATION_REQUESTED
    await record(tx, connection.tenant, action, connection.id, context, now, **detail)
    return ConnectionWithLink(named, False, consent if url else None, url)


def _require_consentable(connection: Connection, now: datetime) -> None:
    """Raise the Failure of an ended connection, CONSENT_EXPIRED for one that is about to end."""
    if connection.state.is_final or connection.state is LifecycleState.REVOKING:
        raise Failure(connection.reason or ErrorCode.CONNECTION_REVOKED, connection_id=connection.id)
    if connection.state is LifecycleState.PENDING_CONSENT and connection.consent_deadline <= now:
        raise Failure(ErrorCode.CONSENT_EXPIRED, connection_id=connection.id)


@router.post("/v1/connections/{connection_id}/revoke", status_code=202, response_model=ConnectionView)
async def revoke_connection(
    connection_id: str,
    request: Request,
    api: ApiDep,
    caller: CallerDep,
    context: ContextDep,
    body: RevokeBody | None = None,
    key: IdempotencyKey = None,
) -> Response:
    """Revoke for good. After this response no lease is issued; workers retry until the provider confirms."""
    command = IdempotentCommand(request, caller, key, body)
    reason = body.reason if body is not None else RevokeBody().reason
    return await _revoke(connection_id, api, caller, context, reason, command)


@router.delete("/v1/connections/{connection_id}", status_code=202, response_model=ConnectionView)
async def delete_connection(
    connection_id: str,
    request: Request,
    api: ApiDep,
    caller: CallerDep,
    context: ContextDep,
) -> Response:
    """The same as revoke: no connection is deleted without a revocation at the provider."""
    command = IdempotentCommand(request, caller, None, None)
    return await _revoke(connection_id, api, caller, context, "deleted", command)


async def _revoke(
    connection_id: str,
    api: ApiContext,
    caller: Caller,
    context: RequestContext,
    reason: str,
    command: IdempotentCommand,
) -> Response:
    async def revoke(tx: Transaction) -> CommandResponse:
        connection = await visible_connection(tx, caller, connection_id, Action.CONNECT, Action.ADMIN)
        if not (connection.state.is_final or connection.state is LifecycleState.REVOKING):
            connection = await _begin_revocation(tx, connection, reason, context, api.clock.now())
        return CommandResponse.from_view(202, await connection_view(tx, connection))

    # a revocation must succeed on a busy row
    return (await command.run(api, revoke, tries=_REVOKE_ATTEMPTS)).response()


async def _begin_revocation(
    tx: Transaction, connection: Connection, reason: str, context: RequestContext, now: datetime
) -> Connection:
    """Write state, outbox message and audit record. From its commit on no lease is issued."""
    after = await tx.connections.replace(
        connection.revocation_requested(reason, now), expected=connection.revision
    )
    message = Revoke(reason=reason, context=context)
    await tx.outbox.add(connection_signal_message(after, SignalName.REVOKE, message, now))
    action = AuditAction.REVOCATION_REQUESTED
    await record(tx, after.tenant, action, after.id, context, now, reason=reason)
    return after
