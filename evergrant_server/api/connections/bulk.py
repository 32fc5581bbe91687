"""`/v1/connections/bulk`: one act on many connections, which a worker carries out, with its progress."""

from datetime import datetime, timedelta
from typing import Annotated, Self

from fastapi import APIRouter, Query
from pydantic import AfterValidator, Field, model_validator
from starlette.responses import Response

from evergrant_server.access.approvals import dangerous, use_approval
from evergrant_server.api.connections.models import (
    ConnectionTotals,
    Search,
    checked_connection_id,
    storable_search,
)
from evergrant_server.api.http.call import AdminCall, AdminCommand, ApiCall, AuditorCall, CommandResponse
from evergrant_server.api.http.models import (
    Body,
    Label,
    Page,
    PageCursor,
    PageLimit,
    Slug,
    Text,
    View,
    checked_storable,
)
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.bulk import MOST_TICKED, BulkAction, BulkFilter, BulkOrder
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.incidents import IncidentState, ItemOutcome, ItemStep
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.events import EventType
from evergrant_server.core.ids import BulkId, ConnectionId, new_id
from evergrant_server.core.integrations import Integration
from evergrant_server.core.outbox import bulk_message
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction
from evergrant_server.store.connections.incidents import ListedConnection
from evergrant_server.store.connections.search import ConnectionFilter, ConnectionSearch, StateCounts

router = APIRouter(tags=["connections"])

_PAUSE_TRIES = 100
_Id = Annotated[ConnectionId, AfterValidator(checked_connection_id)]
_Beginning = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(checked_storable)]
_Ids = Annotated[str | None, Query(max_length=6000, description="Ids, with spaces between them")]
_HOW = {
    BulkAction.REFRESH: "Each connection's workflow asks its provider for a new access token, at most 25 of "
    "an integration at a time, behind apps that wait for one.",
    BulkAction.RECONNECT: "For each that needs a new consent, webhooks get connection.needs_reauth again. "
    "An admin can't consent, nor make a link: the app that hears it makes one for its subject, and a lease "
    "answers with one anyhow.",
    BulkAction.REVOKE: "From its turn on no token of a connection is leased. A worker ends the grant at the "
    "provider. It can't be undone: everybody consents again.",
    BulkAction.LABEL: "Apps name a connection by integration, subject and label: those that name the label "
    "of before find it no more. One is left as it is where its subject has another with this label.",
}


class BulkBody(Body):
    """What is done, and with which connections: `connections` by their ids, at most 200; or those of
    `integration` in `state`, `failing`, whose subject or label begins with `search`. Without any of these:
    all that haven't ended.

    `refresh` asks the provider for a new access token. `reconnect` tells webhooks once more which
    connections need a new consent: only an app makes a link for its subject. `revoke` is for good. `label`
    gives connections the `label`, by which apps name them. `confirm` repeats the integration's name, or
    without one the tenant's: for `revoke` and `label`. `reason` stays in the audit log: name a ticket, and
    no person. After `wait` seconds it is over, however far the connections are; null:
    `EVERGRANT_INCIDENT_WAIT`.
    """

    action: BulkAction
    connections: Annotated[tuple[_Id, ...], Field(min_length=1, max_length=MOST_TICKED)] | None = None
    integration: Slug | None = None
    state: LifecycleState | None = None
    failing: bool = False
    search: _Beginning | None = None
    label: Label | None = None
    reason: Text
    confirm: str | None = None
    wait: Annotated[float | None, Field(ge=1, le=90 * 86_400)] = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.label is not None) != (self.action is BulkAction.LABEL):
            raise ValueError("label belongs to the action label, which needs it")
        narrowed = (self.integration, self.state, self.search) != (None, None, None) or self.failing
        if self.connections is not None and narrowed:
            raise ValueError("send connections, or a filter")
        return self

    @property
    def filters(self) -> BulkFilter:
        ticked = None if self.connections is None else tuple(dict.fromkeys(self.connections))
        return BulkFilter(
            connections=ticked,
            integration=self.integration,
            state=self.state,
            failing=self.failing,
            subject=self.search,
        )


class BulkPlanView(View):
    """What an order would be about. `confirm` is what it repeats, null where it needs to repeat nothing.
    `listening`: webhooks that hear of it; of `reconnect` alone."""

    action: BulkAction
    how: str
    totals: ConnectionTotals
    confirm: str | None
    listening: int | None


class BulkOrderView(View):
    """How far an order is. `outcomes`: how many connections ended how. Of `refresh`: `renewed`, `failed`,
    `reconnect` (a new consent is needed), `not_supported` (nothing refreshes it), `nothing_held`; of
    `reconnect`: `asked`, `well`; of `revoke`: `confirmed`, `not_supported`, `unknown`, `nothing_held`; of
    `label`: `labelled`, `taken`, `not_supported`; `gone` had ended before."""

    id: str
    action: BulkAction
    filters: BulkFilter
    label: str | None
    reason: str
    by: str
    state: IncidentState
    paused: bool
    created_at: datetime
    waits_until: datetime
    selected: int
    ended: int
    outcomes: dict[str, int]
    finished_at: datetime | None


class BulkConnectionView(View):
    """One connection of an order. `subject` and `label` are null once it is erased."""

    connection_id: str
    subject: str | None
    label: str | None
    integration: str
    provider: str
    step: ItemStep
    outcome: ItemOutcome | None
    state: str


@router.get("/v1/connections/bulk/plan")
async def get_bulk_plan(
    call: AuditorCall,
    action: BulkAction,
    integration: Annotated[str | None, Query(max_length=63)] = None,
    state: LifecycleState | None = None,
    failing: bool = False,
    search: Search = None,
    connections: _Ids = None,
) -> BulkPlanView:
    """What an order would be about, and how it would be carried out. Changes nothing."""
    ticked = None if connections is None else tuple(map(ConnectionId, connections.split()[:MOST_TICKED]))
    filters = BulkFilter(
        connections=ticked,
        integration=integration,
        state=state,
        failing=failing,
        subject=storable_search(search),
    )
    async with call.api.store.read() as tx:
        await _named_integration(tx, call, filters)
        await _require_ticked(tx, call, filters)
        totals = await _totals(tx, call, filters)
        listening = await _listening(tx, call, integration) if action is BulkAction.RECONNECT else None
    return BulkPlanView(
        action=action,
        how=_HOW[action],
        totals=totals,
        confirm=_name(call, filters) if action.is_dangerous else None,
        listening=listening,
    )


@router.post("/v1/connections/bulk", status_code=202, response_model=BulkOrderView)
@dangerous("revoke and label: connections end, or apps find them no more")
async def open_bulk_order(body: BulkBody, call: AdminCommand) -> Response:
    """Have a worker refresh, revoke or label many connections, or tell apps that their subjects have to
    consent again: one after another, until the order is paused or done."""
    filters = body.filters
    if body.action.is_dangerous:
        call.require_step_up()
        await _require_confirmed(call, body, filters)
    default = call.api.settings.incident_wait
    wait = default if body.wait is None else timedelta(seconds=body.wait)

    async def begin(tx: Transaction) -> CommandResponse:
        integration = await _named_integration(tx, call, filters)
        await _require_ticked(tx, call, filters)
        approved: dict[str, str] = {}
        if body.action.is_dangerous:
            names = {"integration": integration and integration.id}
            approved = await use_approval(tx, call, body, names)
        order = BulkOrder(
            tenant=call.tenant,
            id=BulkId(new_id("blk")),
            action=body.action,
            filters=filters,
            label=body.label,
            reason=body.reason,
            by=call.context.by,
            created_at=call.now,
            waits_until=call.now + wait,
        )
        await tx.bulk_orders.add(order)
        await tx.outbox.add(bulk_message(order, call.context, call.now))
        detail = {"action": order.action, "reason": order.reason, **filters.facts, **approved}
        await call.record(tx, AuditAction.BULK_OPENED, order.id, **detail)
        return CommandResponse.of(BulkOrderView.of(order), 202)

    response = await call.run(body, begin)
    call.api.relay.notify()
    return response


@router.get("/v1/connections/bulk")
async def list_bulk_orders(
    call: AuditorCall, limit: PageLimit = 50, cursor: PageCursor = None
) -> Page[BulkOrderView]:
    """The tenant's bulk orders, sorted by id."""
    listing = call.listing("bulk", limit, cursor)
    async with call.api.store.read() as tx:
        orders = await tx.bulk_orders.page(call.tenant, listing.after, listing.most)
    return listing.page([BulkOrderView.of(order) for order in orders], orders, lambda order: order.id)


@router.get("/v1/connections/bulk/{bulk_id}")
async def get_bulk_order(bulk_id: str, call: AuditorCall) -> BulkOrderView:
    """How far an order is."""
    async with call.api.store.read() as tx:
        return BulkOrderView.of(await _order(tx, call, bulk_id))


@router.get("/v1/connections/bulk/{bulk_id}/connections")
async def list_bulk_connections(
    bulk_id: str,
    call: AuditorCall,
    limit: PageLimit = 50,
    cursor: PageCursor = None,
    outcome: Annotated[ItemOutcome | None, Query()] = None,
) -> Page[BulkConnectionView]:
    """What became of each connection of an order, sorted by id; with `outcome` those that have ended so."""
    listing = call.listing("bulk-connections", limit, cursor, of=bulk_id, outcome=outcome)
    async with call.api.store.read() as tx:
        order = await _order(tx, call, bulk_id)
        connections = await tx.incident_items.page(order, listing.after, listing.most, outcome)
    views = [_connection_view(connection) for connection in connections]
    return listing.page(views, connections, lambda connection: connection.item.connection_id)


@router.post("/v1/connections/bulk/{bulk_id}/pause")
async def pause_bulk_order(bulk_id: str, call: AdminCall) -> BulkOrderView:
    """Have an order rest at the end of its page. Connections that were told go on."""
    return await _pause(bulk_id, call, paused=True)


@router.post("/v1/connections/bulk/{bulk_id}/resume")
async def resume_bulk_order(bulk_id: str, call: AdminCall) -> BulkOrderView:
    """Have a paused order go on."""
    return await _pause(bulk_id, call, paused=False)


async def _pause(bulk_id: str, call: ApiCall, *, paused: bool) -> BulkOrderView:
    async def write(tx: Transaction) -> BulkOrder:
        order = await _order(tx, call, bulk_id)
        if order.finished_at is not None:
            raise invalid_request("bulk_id", "The order is done.")
        if order.paused is not paused:
            changed = order.__replace__(paused=paused, idle=0)
            order = await tx.bulk_orders.replace(changed, expected=order.revision)
            await call.record(tx, AuditAction.BULK_PAUSED, order.id, paused=paused)
        await tx.outbox.add(bulk_message(order, call.context, call.now))
        return order

    order = await call.write(write, tries=_PAUSE_TRIES)  # a worker writes the row all the time
    call.api.relay.notify()
    return BulkOrderView.of(order)


async def _require_confirmed(call: ApiCall, body: BulkBody, filters: BulkFilter) -> None:
    """Raise Failure INVALID_REQUEST, with the count, unless a person has repeated what it is about."""
    name = _name(call, filters)
    if body.confirm == name:
        return
    async with call.api.store.read() as tx:
        totals = await _totals(tx, call, filters)
    most = "" if totals.complete else "at least "
    why = f"confirm must be {name!r}: it is about {most}{totals.total:,} connections."
    raise invalid_request("confirm", why)


async def _named_integration(tx: Transaction, call: ApiCall, filters: BulkFilter) -> Integration | None:
    """The integration of the filter. Raises Failure NOT_FOUND."""
    if filters.integration is None:
        return None
    integration = await tx.integrations.by_name(call.tenant, filters.integration)
    if integration is None:
        raise Failure(ErrorCode.NOT_FOUND, "There is no such integration. See: evergrant integrations ls")
    return integration


async def _require_ticked(tx: Transaction, call: ApiCall, filters: BulkFilter) -> None:
    """Raise Failure NOT_FOUND unless each connection that is named is there."""
    named = filters.connections or ()
    if len(await tx.incident_items.places(call.tenant, named)) < len(named):
        raise Failure(ErrorCode.NOT_FOUND)


async def _totals(tx: Transaction, call: ApiCall, filters: BulkFilter) -> ConnectionTotals:
    """How many connections the filter has now."""
    if filters.connections is not None:
        places = await tx.incident_items.places(call.tenant, filters.connections)
        return ConnectionTotals(total=len(places), states={}, failing=0, complete=True)
    wanted = ConnectionFilter(filters.integration, search=filters.subject)
    counts = await ConnectionSearch(tx.connection, call.tenant).counts(wanted)
    states = {state: number for state, number in counts.states.items() if not state.is_final}
    if filters.state is not None:
        states = {filters.state: counts.states.get(filters.state, 0)}
    if filters.failing:
        states = {LifecycleState.ACTIVE: counts.failing}
    return ConnectionTotals.of_counts(StateCounts(states, counts.failing, counts.complete))


async def _listening(tx: Transaction, call: ApiCall, integration: str | None) -> int:
    """How many webhooks get told of connections of the integration, or of any, that need a new consent."""
    webhooks = await tx.webhooks.enabled(call.tenant)
    told = [webhook for webhook in webhooks if EventType.NEEDS_REAUTH in webhook.events]
    return sum(integration is None or webhook.integration in ("*", integration) for webhook in told)


def _name(call: ApiCall, filters: BulkFilter) -> str:
    return filters.integration or call.tenant


async def _order(tx: Transaction, call: ApiCall, id: str) -> BulkOrder:
    return require_found(await tx.bulk_orders.get(call.tenant, BulkId(id)))


def _connection_view(connection: ListedConnection) -> BulkConnectionView:
    return BulkConnectionView.of(
        connection.item,
        state=connection.state or "erased",
        subject=connection.subject,
        label=connection.label,
    )
