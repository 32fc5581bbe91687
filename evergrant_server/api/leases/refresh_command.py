"""`POST /v1/connections/{id}/refresh`: refreshes on request, or after a report of a refused token."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from evergrant_server.access.refreshes import RefreshKey, RefreshWaiter
from evergrant_server.api.connections.models import ConnectionView
from evergrant_server.api.connections.view import connection_view
from evergrant_server.api.http.call import ApiCall, Command, CommandResponse
from evergrant_server.api.leases.models import RefreshBody
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import Grant
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.lifecycle.schedule import NEWEST_RULES, RULES
from evergrant_server.core.messages.connection import RefreshReason
from evergrant_server.policy import Target
from evergrant_server.store import Transaction

router = APIRouter(tags=["connections"])


def refresh_waiter(request: Request) -> RefreshWaiter:
    return request.app.state.refresher


RefreshWaiterDep = Annotated[RefreshWaiter, Depends(refresh_waiter)]


@router.post("/v1/connections/{connection_id}/refresh", response_model=ConnectionView)
async def refresh_connection(
    connection_id: str, refresher: RefreshWaiterDep, call: Command, body: RefreshBody | None = None
) -> Response:
    """Refresh unless the grant is newer than `generation`. Concurrent requests share one refresh.

    A report of a refused token refreshes once for that generation. With `admin` it is tried at once also
    where an admin or operator had to repair something first. For an app with neither `connect` nor `admin`
    only a report, or a token that is due, refreshes. The response shows the current generation:
    unchanged without a refresh, and when another one would not help.
    """
    async with call.api.store.read() as tx:
        connection = await call.visible_connection(
            tx, connection_id, Action.TOKEN, Action.CONNECT, Action.ADMIN
        )
        stored = await call.stored_response(tx, body)
        grant = await tx.grants.get(connection.tenant, connection.id)
    if stored is not None:
        return stored
    reason = _refresh_reason(call, connection, body)
    is_report = reason is RefreshReason.UNAUTHORIZED
    seen = connection.generation
    if body is not None and body.seen_by_caller is not None:
        current = grant is not None and body.seen_by_caller >= grant.token_generation
        seen = seen if current else min(body.seen_by_caller, seen)  # narrower tokens move the generation on
    if is_report and seen == connection.generation:
        connection = await _note_report(call, connection)
    _require_refreshable_state(connection)
    if connection.generation <= seen and not (grant is not None and _lasts(grant, reason, call.now)):
        refresh = refresher.refresh_refused_token if is_report else refresher.require_refreshed
        repaired = reason is RefreshReason.COMMAND and call.allows(Action.ADMIN, Target.of(connection))
        key = RefreshKey(connection.tenant, connection.id, seen, reason, repaired=repaired)
        await refresh(key, call.context, call.patience_s)

    async def view(tx: Transaction) -> CommandResponse:
        current = await call.visible_connection(tx, connection_id)
        _require_refreshable_state(current)  # the store may say so before the workflow does
        return CommandResponse.of(await connection_view(tx, current))

    return await call.run(body, view)


def _refresh_reason(call: ApiCall, connection: Connection, body: RefreshBody | None) -> RefreshReason:
    """Why the caller may have it refreshed. An app that only leases can't force refreshes."""
    if body is not None and body.reason is not None:
        return RefreshReason.UNAUTHORIZED
    target = Target.of(connection)
    commands = call.allows(Action.CONNECT, target) or call.allows(Action.ADMIN, target)
    return RefreshReason.COMMAND if commands else RefreshReason.DUE


def _lasts(grant: Grant, reason: RefreshReason, now: datetime) -> bool:
    """True when the grant isn't refreshed for this reason."""
    if reason is RefreshReason.DUE and not grant.is_due(now, RULES[NEWEST_RULES].margin):
        return True
    # no refresh can replace a valid token; after its expiry the workflow says who has to act
    return not grant.refreshable and grant.is_valid(now)


async def _note_report(call: ApiCall, reported: Connection) -> Connection:
    """Record once that this generation's token was reported: unless a refresh helps, it is not leased."""
    if reported.reported_generation == reported.generation:
        return reported

    async def note(tx: Transaction) -> Connection:
        connection = await call.visible_connection(tx, reported.id)
        has_token = connection.state in (LifecycleState.ACTIVE, LifecycleState.NEEDS_REAUTH)
        known = connection.reported_generation == connection.generation
        if known or not has_token or connection.generation != reported.generation:
            return connection
        detail = {"generation": connection.generation}
        await call.record(tx, AuditAction.TOKEN_REPORTED, connection.id, **detail)
        return await tx.connections.replace(connection.token_reported(), expected=connection.revision)

    return await call.write(note)


def _require_refreshable_state(connection: Connection) -> None:
    """Raise the Failure that says why the connection can't be refreshed in its state."""
    if connection.state is not LifecycleState.ACTIVE:
        pending = connection.state is LifecycleState.PENDING_CONSENT
        reason = None if pending else connection.reason
        raise Failure(reason or ErrorCode.CONSENT_REQUIRED, connection_id=connection.id)
