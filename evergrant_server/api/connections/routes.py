"""`/v1/connections`: create, list and read connections."""

import logging
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import Response

from evergrant_server.access.context import ApiContext, integration_spec
from evergrant_server.api.connections.create import ConnectionSetup
from evergrant_server.api.connections.models import (
    ConnectionBody,
    ConnectionList,
    ConnectionTotals,
    ConnectionView,
    LiveView,
    Search,
    storable_search,
)
from evergrant_server.api.connections.scopes import require_source_permit, take_over_exchange
from evergrant_server.api.connections.view import (
    DESCRIBE_TIMEOUT_S,
    account_for,
    add_device_code,
    add_next_step,
    connection_view,
    device_view,
    failed_consent_in_full,
    missing_scopes,
    newest_consent,
    provider_said,
)
from evergrant_server.api.http.call import ApiCall, Call, Command, CommandResponse
from evergrant_server.api.http.models import PageCursor, PageLimit, UtcDatetime
from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import ConsentStatus
from evergrant_server.core.connections.grant import FollowUp
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.lifecycle.schedule import NEWEST_RULES, RULES
from evergrant_server.policy import Target
from evergrant_server.store import Transaction
from evergrant_server.store.connections.search import (
    ConnectionFilter,
    ConnectionSearch,
    ListOrder,
    StateCounts,
    connection_or_unreadable,
)
from evergrant_server.telemetry.metrics import report_unreadable
from providers.definition.templates import api_base_url_of

log = logging.getLogger("evergrant.api")

router = APIRouter(tags=["connections"])
_NextAction = tuple[str | None, datetime | None]  # what comes next, and when at the latest

_SCAN_ROWS = 200  # rows read at a time while filtering by permits
_MAX_SCANS = 25
_FILTERS = ("integration", "provider", "subject", "state", "expiring_before")
_LATER = ("failing", "search")  # filters that are no part of the cursors of lists without them
_MOST_JUDGED = 2000  # rows that are counted one by one
_COUNTED = ("id", "integration", "provider", "subject", "label", "state", "failures", "follow_up")
_LIVE_TIMEOUT_S = 2.0  # the same with `live=true`


@router.post(
    "/v1/connections",
    status_code=201,
    response_model=ConnectionView,
    responses={200: {"model": ConnectionView, "description": "The connection exists already"}},
)
async def create_connection(body: ConnectionBody, call: Command) -> Response:
    """Create a connection, or return the existing one. Send the subject to `connect_url`.

    While the refreshes of an active one fail, `next_action` says what the next try decides, and `next_at`
    when it comes: until then no person has to act, unless `repairer` names a person.
    """

    async def create(tx: Transaction) -> CommandResponse:
        if body.source is not None:
            await require_source_permit(tx, call, body.source)
        linked = await ConnectionSetup(call).find_or_create(tx, body)
        connection = linked.connection
        if not linked.created and body.source == connection.source:
            connection = await take_over_exchange(tx, call, connection)
        view = await connection_view(tx, connection, linked)
        if linked.consent is not None:
            view = view.__replace__(expires_at=linked.consent.expires_at)
        return CommandResponse.of(view, 201 if linked.created else 200)

    # the request hash must not cover secrets
    sent = body.__replace__(subject_token=None, credential=None)
    return await add_next_step(call, await add_device_code(call, await call.run(sent, create)))


_Name = Annotated[str | None, Query(max_length=63)]
_Subject = Annotated[str | None, Query(max_length=255)]


@router.get("/v1/connections")
async def list_connections(
    call: Call,
    integration: _Name = None,
    provider: _Name = None,
    subject: _Subject = None,
    state: LifecycleState | None = None,
    expiring_before: UtcDatetime | None = None,
    failing: bool = False,
    search: Search = None,
    order: ListOrder = ListOrder.ID,
    reference: _Name = None,
    accounts: Annotated[bool, Query(description="With the name of each account, as `account`")] = False,
    limit: PageLimit = 50,
    cursor: PageCursor = None,
) -> ConnectionList:
    """The connections that the app's permits cover, sorted by id.

    With `order` `urgency` those that need somebody come first. `failing`: active ones whose refresh fails, or
    whose account is to be chosen. `search` sorts what it finds by subject, and then by label.

    With the `reference` from a subject's page only the connection whose consent failed there; no other
    filter may come with it.
    """
    wanted = ConnectionFilter(
        integration, provider, subject, state, expiring_before, storable_search(search), failing
    )
    filters = _bound(wanted, order)
    if reference is not None:
        _require_alone({**filters, "cursor": cursor})
        return await _with_reference(call, reference)
    listing = call.listing("connections", limit, cursor, app=call.caller.app.id, **filters)
    async with call.api.store.read() as tx:
        lists = ConnectionSearch(tx.connection, call.tenant)
        connections, unreadable, last = await _visible_page(call, lists, wanted, order, listing.after, limit)
        items, unreadable_views = await _views(tx, connections, call if accounts else None)
    unreadable += unreadable_views
    report_unreadable(log, unreadable)
    next_cursor = None if last is None else listing.cursor_after(last)
    ids = tuple(sorted(id for id, _ in unreadable))
    return ConnectionList(items=items, next_cursor=next_cursor, unreadable=ids)


def _bound(wanted: ConnectionFilter, order: ListOrder) -> dict[str, object]:
    """What the cursors of a list are bound to: those of lists without `_LATER` are as they were."""
    bound: dict[str, object] = {name: getattr(wanted, name) for name in _FILTERS}
    bound |= {name: value for name in _LATER if (value := getattr(wanted, name))}
    return bound if order is ListOrder.ID else {**bound, "order": order}


@router.get("/v1/connections/totals")
async def get_connection_totals(
    call: Call, integration: _Name = None, search: Search = None
) -> ConnectionTotals:
    """How many connections the app's permits cover, by state.

    Counts stop at 100,000 of a state. An app whose permits don't cover every connection gets those among
    the first 2,000 of the filter.
    """
    wanted = ConnectionFilter(integration, search=storable_search(search))
    async with call.api.store.read() as tx:
        lists = ConnectionSearch(tx.connection, call.tenant)
        if call.may_see(Target()):
            return ConnectionTotals.of_counts(await lists.counts(wanted))
        rows = await lists.page(wanted, ListOrder.URGENCY, None, _MOST_JUDGED, _COUNTED)
    return _judged_totals(call, [placed.row for placed in rows])


def _judged_totals(call: ApiCall, rows: list[dict[str, Any]]) -> ConnectionTotals:
    states: dict[LifecycleState, int] = {}
    failing = 0
    for row in rows:
        if call.may_see(Target(row["integration"], row["provider"], row["subject"], row["id"])):
            state = LifecycleState(row["state"])
            states[state] = states.get(state, 0) + 1
            chooses = row["follow_up"] == FollowUp.CHOOSING.value
            failing += state is LifecycleState.ACTIVE and bool(row["failures"] or chooses)
    counts = StateCounts(states, failing, len(rows) < _MOST_JUDGED)
    return ConnectionTotals.of_counts(counts)


async def _views(
    tx: Transaction, connections: list[Connection], names_for: ApiCall | None
) -> tuple[list[ConnectionView], list[tuple[str, str]]]:
    """The views, with the accounts' names for this caller; and the id and the reason of each that the server
    can't read, such as of its grant's row."""
    views: list[ConnectionView] = []
    unreadable: list[tuple[str, str]] = []
    for connection in connections:
        try:
            view = await connection_view(tx, connection)
            if names_for is not None and not connection.state.is_final:
                view = view.__replace__(account=await account_for(tx, names_for, connection))
            views.append(view)
        except Failure as failure:
            if failure.code is not ErrorCode.INTERNAL:
                raise
            unreadable.append((connection.id, failure.detail))
    return views, unreadable


def _require_alone(others: dict[str, object]) -> None:
    """Raise Failure INVALID_REQUEST for a filter beside a reference, which leads to one connection."""
    for name, value in others.items():
        if value is not None:
            raise Failure(ErrorCode.INVALID_REQUEST, f"Send reference without {name}.", field=name)


async def _with_reference(call: ApiCall, reference: str) -> ConnectionList:
    items: list[ConnectionView] = []
    async with call.api.store.read() as tx:
        for consent in await tx.consents.by_reference(call.tenant, reference):
            try:
                connection = await call.visible_connection(tx, consent.connection_id)
            except Failure as failure:
                if failure.code is not ErrorCode.NOT_FOUND:
                    raise
                continue  # not this app's to see
            view = await connection_view(tx, connection)
            refusal = await provider_said(tx, call, connection, consent)
            items.append(view.__replace__(provider_said=refusal))
    return ConnectionList(items=items)


async def _visible_page(
    call: ApiCall,
    lists: ConnectionSearch,
    wanted: ConnectionFilter,
    order: ListOrder,
    after: str | None,
    limit: int,
) -> tuple[list[Connection], list[tuple[str, str]], str | None]:
    """Up to `limit` visible connections, the rows among them that can't be read (id and why), and the place
    to continue after if there may be more.

    A page may be short although a cursor follows, when few of the scanned rows are visible.
    """
    connections: list[Connection] = []
    unreadable: list[tuple[str, str]] = []
    size = limit + 1 if call.may_see(Target()) else _SCAN_ROWS
    for _ in range(_MAX_SCANS):
        batch = await lists.page(wanted, order, after, size)
        for placed in batch:
            row = placed.row
            if not call.may_see(Target(row["integration"], row["provider"], row["subject"], row["id"])):
                after = placed.place
                continue
            if len(connections) + len(unreadable) == limit:
                return connections, unreadable, after
            after = placed.place
            connection = connection_or_unreadable(row)
            if isinstance(connection, Connection):
                connections.append(connection)
            else:
                unreadable.append((connection.id, connection.why))
        if len(batch) < size:
            return connections, unreadable, None
    return connections, unreadable, after


@router.get("/v1/connections/{connection_id}")
async def get_connection(
    connection_id: str,
    call: Call,
    live: Annotated[bool, Query(description="Also query the workflow, for at most two seconds")] = False,
) -> ConnectionView:
    """State, generation, expiry and next action. Never a secret.

    With `live=true` also the workflow's own description, and the members that differ from the store.
    """
    api = call.api
    async with api.store.read() as tx:
        connection = await call.visible_connection(tx, connection_id)
        view = await connection_view(tx, connection)
        refusal = await provider_said(tx, call, connection)
        base_url = await _api_base_url(tx, api, connection, view)
        lacking = missing_scopes(api.registry, connection, view.scopes) if view.scopes else ()
        consent = await newest_consent(tx, connection)
        failed = await failed_consent_in_full(tx, connection, consent)
        view = view.__replace__(
            api_base_url=base_url, provider_said=refusal, failed_consent=failed, missing_scopes=lacking
        )
        # a reader of the code could have another account approve it
        if call.allows(Action.CONNECT, Target.of(connection)):
            view = view.__replace__(device=await device_view(tx, connection))
    action = _awaited_action(connection, call.now)
    if consent is not None and consent.status is ConsentStatus.CODE_RECEIVED and consent.came_from_browser:
        action = "exchange", None  # the subject is done: a worker's turn
    if live or action is None:
        return await _with_description(api, connection, view, action, live=live)
    next_action, next_at = action
    return view.__replace__(next_action=next_action, next_at=next_at)


async def _with_description(
    api: ApiContext, connection: Connection, view: ConnectionView, action: _NextAction | None, *, live: bool
) -> ConnectionView:
    """The view with what the connection's workflow answers, if it does in time; its next action is the
    workflow's where the store has none."""
    described = None
    with suppress(Failure):  # then the view has what the store knows
        timeout = _LIVE_TIMEOUT_S if live else DESCRIBE_TIMEOUT_S
        described = await api.link.describe(connection.tenant, connection.id, timeout=timeout)
    if described is not None:
        if action in (None, (None, None)):
            action = described.next_step, described.next_at
        if live:
            shown = LiveView.of_workflow(described)
            view = view.__replace__(live=shown, differs=shown.differences_from(view))
    if action is None:
        return view
    next_action, next_at = action
    return view.__replace__(next_action=next_action, next_at=next_at)


async def _api_base_url(
    tx: Transaction, api: ApiContext, connection: Connection, view: ConnectionView
) -> str | None:
    """The base URL of the provider's API, if the definition has one."""
    integration = await tx.integrations.get(connection.tenant, connection.integration_id)
    if integration is None:
        return None
    try:
        spec = await integration_spec(tx, api.registry, integration)
    except Failure:  # its definition was deleted
        return None
    return api_base_url_of(spec, integration.params, view.metadata)


def _awaited_action(connection: Connection, now: datetime) -> _NextAction | None:
    """The action of the subject or app that the workflow waits for; None when it waits for neither. A grant
    that is only probably over is tried once more then in any case."""
    match connection.state:
        case LifecycleState.PENDING_CONSENT:
            if connection.flow.is_client_grant:
                return None
            return "consent", connection.consent_deadline
        case LifecycleState.NEEDS_REAUTH:
            last_try = connection.changed_at + RULES[NEWEST_RULES].last_try
            waits = connection.reason is ErrorCode.GRANT_PROBABLY_OVER and now < last_try
            return "reauthorize", last_try if waits else None
        case LifecycleState.ACTIVE if connection.follow_up is FollowUp.CHOOSING:
            return "choose", None
        case LifecycleState.ACTIVE | LifecycleState.REVOKING:
            return None
        case _:
            return None, None
