"""`/v1/connections`: start one, list them, look at one."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from evergrant_server import audit
from evergrant_server.api.authentication import Caller
from evergrant_server.api.brought import check_brought, static_tokens
from evergrant_server.api.definitions import spec_of
from evergrant_server.api.device_codes import device_of, with_device
from evergrant_server.api.establishing import Establishing, Opened, Wanted
from evergrant_server.api.guards import Asking, By, IdempotencyKey, With, visible_connection
from evergrant_server.api.idempotency import Answer, Once
from evergrant_server.api.parts import Parts
from evergrant_server.api.shapes import ConnectionBody, Moment
from evergrant_server.api.sources import asked_again, require_source
from evergrant_server.api.views import ConnectionView, LiveView, Page, RevokingView
from evergrant_server.core.access import Action
from evergrant_server.core.account import FollowUp
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connection import Connection, State
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.flow import Flow, Target
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.imports import ImportedTokens
from evergrant_server.policy import decide, reaches
from evergrant_server.store import Tx
from providers.resolve import api_base_url_of
from providers.spec import ProviderSpec

router = APIRouter(tags=["connections"])

_SCAN = 200  # rows read at a time while looking for those the app may see
_MOST_SCANS = 25
_DESCRIBE_S = 1.0  # how long a read waits for the workflow's own words
_LIVE_S = 2.0  # how long one waits that asks for nothing else


async def view_of(tx: Tx, connection: Connection, opened: Opened | None = None) -> ConnectionView:
    grant = await tx.grants.get(connection.tenant, connection.id)
    view = ConnectionView.of(connection, grant)
    if connection.state is State.REVOKING:
        view = view.model_copy(update={"revoking": await _revoking(tx, connection)})
    if opened is None or opened.consent is None:
        return view
    link = {"connect_url": opened.url, "connect_expires_at": opened.consent.expires_at}
    return view.model_copy(update=link)


async def _revoking(tx: Tx, connection: Connection) -> RevokingView:
    """From the audit log, which knows it also while Temporal is away."""
    asked = await audit.newest(tx, connection.tenant, connection.id, AuditAction.REVOKE_ASKED)
    failed = await audit.newest(tx, connection.tenant, connection.id, AuditAction.REVOCATION_FAILED)
    return RevokingView(
        since=asked.at if asked else None,
        failure=Code(failed.detail["reason"]) if failed else None,
        failed_at=failed.at if failed else None,
    )


@router.post(
    "/v1/connections",
    status_code=201,
    response_model=ConnectionView,
    responses={200: {"model": ConnectionView, "description": "It exists already"}},
)
async def start(
    body: ConnectionBody,
    request: Request,
    parts: With,
    caller: Asking,
    asked: By,
    key: IdempotencyKey = None,
) -> Response:
    """Start a connection, or get the one there is. Send the subject to `connect_url`."""
    without = {"subject_token": None, "credential": None}
    once = Once(request, caller, key, body.model_copy(update=without))  # no hash of a secret
    wanted = Wanted(
        body.integration,
        body.subject,
        body.label,
        body.scopes,
        body.return_to,
        flow=body.flow,
        target=Target(
            resources=body.resources,
            audience=body.audience,
            subject_token_type=body.subject_token_type,
        ),
        source=None if body.source is None else ConnectionId(body.source),
        choice=body.choice,
        chain_scopes=body.chain_scopes,
        brought=lambda spec, flow: _brought(spec, flow, body),
    )

    async def begin(tx: Tx) -> Answer:
        if body.source is not None:  # its token is used: whoever may have it may have this
            await require_source(tx, parts, caller, body.source)
        opened = await Establishing(parts, caller, asked).connect(tx, wanted)
        connection = opened.connection
        if not opened.created and body.source == connection.source:
            connection = await asked_again(tx, parts, caller, asked, connection)
        view = await view_of(tx, connection, opened)
        if opened.consent is not None:
            view = view.model_copy(update={"expires_at": opened.consent.expires_at})
        return Answer.of(201 if opened.created else 200, view)

    answer = await once.committed(parts, begin)
    parts.relay.nudge()
    return (await with_device(parts, caller.tenant, answer)).response()


@router.get("/v1/connections")
async def listed(
    parts: With,
    caller: Asking,
    integration: Annotated[str | None, Query(max_length=63)] = None,
    provider: Annotated[str | None, Query(max_length=63)] = None,
    subject: Annotated[str | None, Query(max_length=255)] = None,
    state: State | None = None,
    expiring_before: Moment | None = None,
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
    after = parts.cursors.read(cursor, caller.tenant, **bound)
    async with parts.store.read() as tx:
        found, last = await _visible(tx, caller, filters, after, limit)
        items = [await view_of(tx, connection) for connection in found]
    following = parts.cursors.write(last, caller.tenant, **bound) if last is not None else None
    return Page(items=items, next_cursor=following)


async def _visible(
    tx: Tx, caller: Caller, filters: dict[str, object], after: str | None, limit: int
) -> tuple[list[Connection], str | None]:
    """Up to `limit` connections that the app may see, and the id to go on after, if there is more.

    An app that sees little of a large tenant may get a short page with a cursor.
    """
    found: list[Connection] = []
    for _ in range(_MOST_SCANS):
        batch = await tx.connections.page(caller.tenant, **filters, after=after, limit=_SCAN)  # pyright: ignore[reportArgumentType]  # the filters' types differ by name
        for connection in batch:
            if reaches(caller.permits, integration=connection.integration, subject=connection.subject):
                if len(found) == limit:
                    return found, found[-1].id
                found.append(connection)
        if len(batch) < _SCAN:
            return found, None
        after = batch[-1].id
    return found, after


@router.get("/v1/connections/{connection_id}")
async def shown(
    connection_id: str,
    parts: With,
    caller: Asking,
    live: Annotated[bool, Query(description="Ask the workflow itself, two seconds at most")] = False,
) -> ConnectionView:
    """State, generation, expiry and what comes next. Never a secret.

    With `live=true` also what the workflow says of itself, and which members differ from the store.
    """
    async with parts.store.read() as tx:
        connection = await visible_connection(tx, caller, connection_id)
        view = await view_of(tx, connection)
        view = view.model_copy(update={"api_base_url": await _api_base_url(tx, parts, connection, view)})
        if _may_connect(caller, connection):  # who knows a code could have another account approve it
            view = view.model_copy(update={"device": await device_of(tx, connection)})
    if live:
        return await _with_live(parts, connection, view)
    return view.model_copy(update=await _next(parts, connection))


async def _api_base_url(tx: Tx, parts: Parts, connection: Connection, view: ConnectionView) -> str | None:
    """Where the provider's API is, for definitions that say so."""
    integration = await tx.integrations.get(connection.tenant, connection.integration_id)
    if integration is None:
        return None
    try:
        spec = await spec_of(tx, parts.registry, integration)
    except Failure:  # its definition is gone
        return None
    return api_base_url_of(spec, integration.params, view.metadata)


def _brought(spec: ProviderSpec, flow: Flow, body: ConnectionBody) -> ImportedTokens | None:
    check_brought(flow, body)
    if body.credential is not None:
        return static_tokens(spec, flow, body.credential)
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


async def _with_live(parts: Parts, connection: Connection, view: ConnectionView) -> ConnectionView:
    """`live` stays null when Temporal or its workers are away, or no run of the workflow is open."""
    try:
        said = await parts.link.describe(connection.tenant, connection.id, timeout=_LIVE_S)
    except Failure:
        said = None
    if said is None:
        return view.model_copy(update=_waits_for(connection) or {})
    live = LiveView.of(said)
    told = _waits_for(connection) or {"next_action": said.next_step, "next_at": said.next_at}
    return view.model_copy(update={**told, "live": live, "differs": live.differs_from(view)})


def _waits_for(connection: Connection) -> dict[str, object] | None:
    """What others must do before the workflow can, None when it is the workflow's turn."""
    match connection.state:
        case State.PENDING_CONSENT:
            if connection.flow.mints:
                return None
            return {"next_action": "consent", "next_at": connection.consent_deadline}
        case State.NEEDS_REAUTH:
            return {"next_action": "reauthorize"}
        case State.ACTIVE if connection.follow_up is FollowUp.CHOOSING:
            return {"next_action": "choose"}
        case State.ACTIVE | State.REVOKING:
            return None
        case _:
            return {}


async def _next(parts: Parts, connection: Connection) -> dict[str, object]:
    """What the workflow will do next, if it can be asked; the state says what others must do."""
    if (told := _waits_for(connection)) is not None:
        return told
    try:
        said = await parts.link.describe(connection.tenant, connection.id, timeout=_DESCRIBE_S)
    except Failure:
        said = None
    if said is None:
        return {}  # nobody to ask: what the store says is still true
    return {"next_action": said.next_step, "next_at": said.next_at}
