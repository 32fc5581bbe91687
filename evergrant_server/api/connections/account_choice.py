"""Chooses the account of a connection whose grant reaches several."""

from datetime import datetime

from fastapi import APIRouter, Request
from starlette.responses import Response

from evergrant_server.api.connections.models import ChooseBody, ConnectionView
from evergrant_server.api.connections.view import connection_view
from evergrant_server.api.http.audit_records import record
from evergrant_server.api.http.dependencies import (
    ApiDep,
    CallerDep,
    ContextDep,
    IdempotencyKey,
    visible_connection,
)
from evergrant_server.api.http.idempotency import CommandResponse, IdempotentCommand
from evergrant_server.api.http.outbox_messages import connection_signal_message
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.base import RequestContext, SignalName
from evergrant_server.core.messages.connection import AccountChosen
from evergrant_server.store import Transaction

router = APIRouter(tags=["connections"])


@router.post("/v1/connections/{connection_id}/choose", response_model=ConnectionView)
async def choose_account(
    connection_id: str,
    body: ChooseBody,
    request: Request,
    api: ApiDep,
    caller: CallerDep,
    context: ContextDep,
    key: IdempotencyKey = None,
) -> Response:
    """Choose one of the connection's `choices`. A later choice replaces it."""
    command = IdempotentCommand(request, caller, key, body)

    async def choose(tx: Transaction) -> CommandResponse:
        connection = await visible_connection(tx, caller, connection_id, Action.CONNECT)
        after = await save_account_choice(tx, connection, body.choice, context, api.clock.now())
        return CommandResponse.from_view(200, await connection_view(tx, after))

    return (await command.run(api, choose)).response()


async def save_account_choice(
    tx: Transaction, connection: Connection, choice: str, context: RequestContext, now: datetime
) -> Connection:
    """Write the choice with its outbox message and audit record.

    Raises Failure INVALID_REQUEST for an unknown choice, and the reason of an ended connection.
    """
    if connection.state.is_final or connection.state is LifecycleState.REVOKING:
        raise Failure(connection.reason or ErrorCode.CONNECTION_REVOKED, connection_id=connection.id)
    grant = await tx.grants.get(connection.tenant, connection.id)
    options = grant.options if grant else ()
    option = next((option for option in options if option.id == choice), None)
    if grant is None or option is None:
        detail = "This is not one of the connection's choices."
        raise Failure(ErrorCode.INVALID_REQUEST, detail, field="choice")
    saved = await tx.connections.replace(connection.account_chosen(option, now), expected=connection.revision)
    metadata = grant.metadata | option.metadata
    await tx.grants.update_facts(saved, grant.model_copy(update={"metadata": metadata}))
    detail = {"choice": option.id, "of": len(options)}
    action = AuditAction.ACCOUNT_CHOSEN
    await record(tx, saved.tenant, action, saved.id, context, now, **detail)
    message = AccountChosen(choice=option.id, context=context)
    await tx.outbox.add(connection_signal_message(saved, SignalName.ACCOUNT_CHOSEN, message, now))
    return saved
