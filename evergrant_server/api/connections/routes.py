"""`/v1/connections`: start one, list them, look at one."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from evergrant_server import audit
from evergrant_server.api.connections.create import ConnectionRequest, ConnectionSetup, ConnectionWithLink
from evergrant_server.api.connections.device_codes import add_device_code, device_view
from evergrant_server.api.connections.source_tokens import require_source_permit, take_over_exchange
from evergrant_server.api.connections.static_credentials import check_credentials, static_grant
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
from evergrant_server.api.http.requests import ConnectionBody, UtcDatetime
from evergrant_server.api.http.responses import ConnectionView, LiveView, Page, RevocationProgressView
from evergrant_server.api.integrations.definitions import integration_spec
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.account import FollowUp
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.flow import Flow, TokenTarget
from evergrant_server.core.connections.imported_tokens import ImportedTokens
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.policy import decide, may_see
from evergrant_server.store import Transaction
from providers.definition.schema import ProviderSpec
from providers.definition.templates import api_base_url_of

router = APIRouter(tags=["connections"])

_SCAN_ROWS = 200  # rows read at a time while looking for those the app may see
_MAX_SCANS = 25
_DESCRIBE_TIMEOUT_S = 1.0  # how long a read waits for the workflow's own words
_LIVE_TIMEOUT_S = 2.0  # how long one waits that asks for nothing else


async def connection_view(
    tx: Transaction, connection: Connection, opened: ConnectionWithLink | None = None
) -> ConnectionView:
    grant = await tx.grants.get(connection.tenant, connection.id)
    view = ConnectionView.of(connection, grant)
    if connection.state is LifecycleState.REVOKING:
        view = view.model_copy(update={"revoking": await _revocation_progress(tx, connection)})
    if opened is None or opened.consent is None:
        return view
    link = {"connect_url": opened.connect_url, "connect_expires_at": opened.consent.expires_at}
    return view.model_copy(update=link)


async def _revocation_progress(tx: Transaction, connection: Connection) -> RevocationProgressView:
    """From the audit log, which knows it also while Temporal is away."""
    asked = await audit.newest_record(tx, connection.tenant, connection.id, AuditAction.REVOCATION_REQUESTED)
    failed = await audit.newest_record(tx, connection.tenant, connection.id, AuditAction.REVOCATION_FAILED)
    return RevocationProgressView(
        since=asked.at if asked else None,
        failure=ErrorCode(failed.detail["reason"]) if failed else None,
        failed_at=failed.at if failed else None,
    )


@router.post(
    "/v1/connections",
    status_code=201,
    response_model=ConnectionView,
    responses={200: {"model": ConnectionView, "description": "It exists already"}},
)
async def create_connection(
    body: ConnectionBody,
    request: Request,
    parts: ContextDep,
    caller: CallerDep,
    asked: RequestContextDep,
    key: IdempotencyKey = None,
) -> Response:
    """Start a connection, or get the one there is. Send the subject to `connect_url`."""
    without = {"subject_token": None, "credential": None}
    once = IdempotentCommand(request, caller, key, body.model_copy(update=without))  # no hash of a secret
    wanted = ConnectionRequest(
        body.integration,
        body.subject,
        body.label,
        body.scopes,
        body.return_to,
        flow=body.flow,
        target=TokenTarget(
            resources=body.resources,
            audience=body.audience,
            subject_token_type=body.subject_token_type,
        ),
        source=None if body.source is None else ConnectionId(body.source),
        choice=body.choice,
        slot_scopes=body.slot_scopes,
        supplied_tokens=lambda spec, flow: _supplied_tokens(spec, flow, body),
    )

    async def begin(tx: Transaction) -> CommandResponse:
        if body.source is not None:  # its token is used: whoever may have it may have this
            await require_source_permit(tx, parts, caller, body.source)
        opened = await ConnectionSetup(parts, caller, asked).find_or_create(tx, wanted)
        connection = opened.connection
        if not opened.created and body.source == connection.source:
            connection = await take_over_exchange(tx, parts, caller, asked, connection)
        view = await connection_view(tx, connection, opened)
        if opened.consent is not None:
            view = view.model_copy(update={"expires_at": opened.consent.expires_at})
        return CommandResponse.from_view(201 if opened.created else 200, view)

    answer = await once.run(parts, begin)
    parts.relay.notify()
    return (await add_device_code(parts, caller.tenant, answer)).response()


@router.get("/v1/connections")
async def list_connections(
    parts: ContextDep,
    caller: CallerDep,
    integration: Annotated[str | None, Query(max_length=63)] = None,
    provider: Annotated[str | None, Query(max_length=63)] = None,
    subject: Annotated[str | None, Query(max_length=255)] = None,
    state: LifecycleState | None = None,
    expiring_before: UtcDatetime | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=2000)] = None,
) -> Page[ConnectionView]:
    """The connections that the app has a permit for, sorted by id."""
    filters = {
        "integration": integration,
        "provider": provider,
        "subject": subject,
        "state": state,
        "expiring_before": expiring_before,
    }
    bound = {"list": "connections", "app": caller.app.id, **filters}
    after = parts.cursors.decode(cursor, caller.tenant, **bound)
    async with parts.store.read() as tx:
        found, last = await _visible_page(tx, caller, filters, after, limit)
        items = [await connection_view(tx, connection) for connection in found]
    following = parts.cursors.encode(last, caller.tenant, **bound) if last is not None else None
    return Page(items=items, next_cursor=following)


async def _visible_page(
    tx: Transaction, caller: Caller, filters: dict[str, object], after: str | None, limit: int
) -> tuple[list[Connection], str | None]:
    """Up to `limit` connections that the app may see, and the id to go on after, if there is more.

    An app that sees little of a large tenant may get a short page with a cursor.
    """
    found: list[Connection] = []
    for _ in range(_MAX_SCANS):
        batch = await tx.connections.page(caller.tenant, **filters, after=after, limit=_SCAN_ROWS)  # pyright: ignore[reportArgumentType]  # the filters' types differ by name
        for connection in batch:
            if may_see(caller.permits, integration=connection.integration, subject=connection.subject):
                if len(found) == limit:
                    return found, found[-1].id
                found.append(connection)
        if len(batch) < _SCAN_ROWS:
            return found, None
        after = batch[-1].id
    return found, after


@router.get("/v1/connections/{connection_id}")
async def get_connection(
    connection_id: str,
    parts: ContextDep,
    caller: CallerDep,
    live: Annotated[bool, Query(description="Ask the workflow itself, two seconds at most")] = False,
) -> ConnectionView:
    """State, generation, expiry and what comes next. Never a secret.

    With `live=true` also what the workflow says of itself, and which members differ from the store.
    """
    async with parts.store.read() as tx:
        connection = await visible_connection(tx, caller, connection_id)
        view = await connection_view(tx, connection)
        view = view.model_copy(update={"api_base_url": await _api_base_url(tx, parts, connection, view)})
        if _may_connect(caller, connection):  # who knows a code could have another account approve it
            view = view.model_copy(update={"device": await device_view(tx, connection)})
    if live:
        return await _with_live_state(parts, connection, view)
    return view.model_copy(update=await _next_action(parts, connection))


async def _api_base_url(
    tx: Transaction, parts: ApiContext, connection: Connection, view: ConnectionView
) -> str | None:
    """Where the provider's API is, for definitions that say so."""
    integration = await tx.integrations.get(connection.tenant, connection.integration_id)
    if integration is None:
        return None
    try:
        spec = await integration_spec(tx, parts.registry, integration)
    except Failure:  # its definition is gone
        return None
    return api_base_url_of(spec, integration.params, view.metadata)


def _supplied_tokens(spec: ProviderSpec, flow: Flow, body: ConnectionBody) -> ImportedTokens | None:
    check_credentials(flow, body)
    if body.credential is not None:
        return static_grant(spec, flow, body.credential)
    if body.subject_token is not None:
        return ImportedTokens(access_token=body.subject_token, expires_at=None)
    return None


def _may_connect(caller: Caller, connection: Connection) -> bool:
    return decide(
        caller.permits,
        integration=connection.integration,
        subject=connection.subject,
        action=Action.CONNECT,
    ).allowed


async def _with_live_state(parts: ApiContext, connection: Connection, view: ConnectionView) -> ConnectionView:
    """`live` stays null when Temporal or its workers are away, or no run of the workflow is open."""
    try:
        said = await parts.link.describe(connection.tenant, connection.id, timeout=_LIVE_TIMEOUT_S)
    except Failure:
        said = None
    if said is None:
        return view.model_copy(update=_awaited_action(connection) or {})
    live = LiveView.of(said)
    told = _awaited_action(connection) or {"next_action": said.next_step, "next_at": said.next_at}
    return view.model_copy(update={**told, "live": live, "differs": live.differences_from(view)})


def _awaited_action(connection: Connection) -> dict[str, object] | None:
    """What others must do before the workflow can, None when it is the workflow's turn."""
    match connection.state:
        case LifecycleState.PENDING_CONSENT:
            if connection.flow.is_client_grant:
                return None
            return {"next_action": "consent", "next_at": connection.consent_deadline}
        case LifecycleState.NEEDS_REAUTH:
            return {"next_action": "reauthorize"}
        case LifecycleState.ACTIVE if connection.follow_up is FollowUp.CHOOSING:
            return {"next_action": "choose"}
        case LifecycleState.ACTIVE | LifecycleState.REVOKING:
            return None
        case _:
            return {}


async def _next_action(parts: ApiContext, connection: Connection) -> dict[str, object]:
    """What the workflow will do next, if it can be asked; the state says what others must do."""
    if (told := _awaited_action(connection)) is not None:
        return told
    try:
        said = await parts.link.describe(connection.tenant, connection.id, timeout=_DESCRIBE_TIMEOUT_S)
    except Failure:
        said = None
    if said is None:
        return {}  # nobody to ask: what the store says is still true
    return {"next_action": said.next_step, "next_at": said.next_at}
