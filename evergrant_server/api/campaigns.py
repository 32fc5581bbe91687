"""`/v1/campaigns`: an integration has another OAuth client, and many subjects consent to it, wave by wave."""

from datetime import datetime, timedelta
from typing import Annotated, Self

from fastapi import APIRouter, Query
from pydantic import Field, model_validator
from starlette.responses import PlainTextResponse, Response

from evergrant_server.access import campaigns as orders
from evergrant_server.access.approvals import dangerous, use_approval
from evergrant_server.access.campaigns import CampaignOrder, PlannedWave
from evergrant_server.access.incidents import pause_incident
from evergrant_server.api.http.call import AdminCall, AdminCommand, ApiCall, AuditorCall, CommandResponse
from evergrant_server.api.http.models import Body, Page, PageCursor, PageLimit, Slug, Text, View
from evergrant_server.api.incidents import get_incident_report
from evergrant_server.core.connections.campaigns import MOST_REMINDERS, Campaign, CampaignEnd
from evergrant_server.core.connections.incidents import (
    Incident,
    IncidentKind,
    IncidentState,
    ItemOutcome,
    ItemStep,
)
from evergrant_server.core.events import EventType
from evergrant_server.core.ids import IncidentId, IntegrationId
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction
from evergrant_server.store.connections.campaigns import WaveCount
from evergrant_server.store.connections.incidents import ListedConnection

router = APIRouter(tags=["campaigns"])

_TRIES = 100
_DAY = 86_400.0
_LONGEST_S = 366 * _DAY
_KINDS = (IncidentKind.CAMPAIGN,)
_VIEW = {"$ref": "#/components/schemas/CampaignView"}
Seconds = Annotated[float, Field(ge=0, le=_LONGEST_S)]
WaveSize = Annotated[int, Field(ge=1, le=10_000)]
Name = Annotated[str, Query(max_length=63)]


class CampaignBody(Body):
    """Whose subjects consent to which client, and how. `successor` is another integration, with the new
    client and without connections, at the same provider: it gets the name of `integration` at once.

    A wave has `wave_size` connections, the least used first; the first begins after `first_wave` seconds, in
    which the campaign can be undone, each other one `every` seconds after the one before. `remind`: as many
    seconds after it was asked a subject is asked again. After `lasts` seconds it ends: connections whose
    subjects haven't consented go on with the client of before (`keep`), or need them (`stop`).

    `confirm` repeats the name of `integration`. `reason` stays in the audit log and in the report: name a
    ticket there, and no person.
    """

    integration: Slug
    successor: Slug
    reason: Text
    confirm: str | None = None
    wave_size: WaveSize = 100
    every: Annotated[float, Field(ge=1, le=_LONGEST_S)] = _DAY
    first_wave: Seconds = 3600.0
    remind: Annotated[tuple[Seconds, ...], Field(max_length=MOST_REMINDERS)] = (3 * _DAY, 7 * _DAY)
    lasts: Annotated[float, Field(ge=1, le=_LONGEST_S)] = 30 * _DAY
    end: CampaignEnd = CampaignEnd.KEEP

    @model_validator(mode="after")
    def _lasts_longer(self) -> Self:
        if self.lasts <= self.first_wave:
            raise ValueError("lasts has to be longer than first_wave")
        return self


class CampaignEndBody(Body):
    """What becomes of connections whose subjects haven't consented; null: as the campaign says."""

    end: CampaignEnd | None = None


class PlannedWaveView(View):
    """One wave. `leases`: of its connections in the last month."""

    begins_at: datetime
    connections: int
    subjects: int
    leases: int

    @classmethod
    def of_wave(cls, wave: PlannedWave) -> "PlannedWaveView":
        return cls.model_validate(vars(wave))


class CampaignPlanView(View):
    """What a campaign would do. `complete` false: more connections follow than the waves have. `listening`:
    webhooks that hear whose subject is asked; without one no app makes a link by itself."""

    integration: str
    successor: str
    connections: int
    complete: bool
    waves: list[PlannedWaveView]
    listening: int
    confirm: str


class CampaignView(View):
    """How far a campaign is. `older`, `newer`: the names that its integrations have now, null for one that
    was deleted. `next_wave_at` null: no more begins. `declined` asked subjects have denied, or tried in vain.
    `outcomes`: how many connections ended how: `consented`, `kept`, `stopped`, `gone`, `not_supported`,
    `nothing_held`."""

    id: str
    integration: str
    older: str | None
    newer: str | None
    reason: str
    by: str
    state: IncidentState
    paused: bool
    created_at: datetime
    first_wave_at: datetime
    ends_at: datetime
    end: CampaignEnd
    wave_size: int
    every: float
    remind: list[float]
    wave: int
    next_wave_at: datetime | None
    selected: int
    asked: int
    reminded: int
    consented: int
    declined: int
    ended: int
    outcomes: dict[str, int]
    undone_at: datetime | None
    finished_at: datetime | None


class WaveView(View):
    """A wave that has begun. `leases`: of its connections in the month before the campaign."""

    wave: int
    connections: int
    consented: int
    leases: int

    @classmethod
    def of_count(cls, count: WaveCount) -> "WaveView":
        return cls.model_validate(count._asdict())


class CampaignDetailView(CampaignView):
    """With its waves."""

    waves: list[WaveView]


class CampaignConnectionView(View):
    """One connection of a campaign. `wave` 0: it wasn't asked yet."""

    connection_id: str
    integration: str
    wave: int
    leases: int
    last_leased_at: datetime | None
    asked_at: datetime | None
    reminders: int
    step: ItemStep
    outcome: ItemOutcome | None
    state: str


@router.get("/v1/campaigns/plan")
async def get_campaign_plan(
    call: AuditorCall,
    integration: Name,
    successor: Name,
    wave_size: Annotated[int, Query(ge=1, le=10_000)] = 100,
    every: Annotated[float, Query(ge=1, le=_LONGEST_S)] = _DAY,
    first_wave: Annotated[float, Query(ge=0, le=_LONGEST_S)] = 3600.0,
) -> CampaignPlanView:
    """The waves of a campaign, the least used connections first, by the leases of the last month. Changes
    nothing."""
    order = CampaignOrder(
        tenant=call.tenant,
        integration=integration,
        successor=successor,
        reason="",
        wave_size=wave_size,
        every=timedelta(seconds=every),
        first_wave=timedelta(seconds=first_wave),
        remind=(),
        lasts=timedelta(seconds=_LONGEST_S),
        end=CampaignEnd.KEEP,
        context=call.context,
        at=call.now,
    )
    async with call.api.store.read() as tx:
        planned = await orders.plan(tx, call.api.registry, order)
        listening = await _listening(tx, call, integration)
    return CampaignPlanView(
        integration=integration,
        successor=successor,
        connections=planned.connections,
        complete=planned.complete,
        waves=[PlannedWaveView.of_wave(wave) for wave in planned.waves],
        listening=listening,
        confirm=integration,
    )


@router.post("/v1/campaigns", status_code=202, response_model=CampaignView)
@dangerous("always: subjects consent to another client from then on")
async def begin_campaign(body: CampaignBody, call: AdminCommand) -> Response:
    """Have the subjects of an integration's connections consent to another client, wave by wave.

    Each connection works with the client of before until its subject has consented; apps change nothing. New
    connections get the new client at once.
    """
    call.require_step_up()
    if body.confirm != body.integration:
        why = f"confirm must be {body.integration!r}: its subjects are asked to consent to another client."
        raise invalid_request("confirm", why)
    order = _order(call, body)

    async def begin(tx: Transaction) -> CommandResponse:
        named = {
            name: await tx.integrations.by_name(call.tenant, name)
            for name in (body.integration, body.successor)
        }
        names = {name: integration and integration.id for name, integration in named.items()}
        await use_approval(tx, call, body, names)
        incident = await orders.begin(tx, call.api.registry, order)
        return CommandResponse.of(await _view(tx, incident), 202)

    response = await call.run(body, begin)
    call.api.relay.notify()
    return response


@router.get("/v1/campaigns")
async def list_campaigns(
    call: AuditorCall, limit: PageLimit = 50, cursor: PageCursor = None
) -> Page[CampaignView]:
    """The tenant's campaigns, sorted by id."""
    listing = call.listing("campaigns", limit, cursor)
    async with call.api.store.read() as tx:
        incidents = await tx.incidents.page(call.tenant, listing.after, listing.most, _KINDS)
        views = [await _view(tx, incident) for incident in incidents]
    return listing.page(views, incidents, lambda incident: incident.id)


@router.get("/v1/campaigns/{campaign_id}")
async def get_campaign(campaign_id: str, call: AuditorCall) -> CampaignDetailView:
    """How far a campaign is, wave by wave."""
    async with call.api.store.read() as tx:
        incident = await _campaign(tx, call, campaign_id)
        view = await _view(tx, incident)
        waves = await tx.campaign_items.waves(incident)
    return CampaignDetailView.of(view, waves=[WaveView.of_count(count) for count in waves])


@router.get("/v1/campaigns/{campaign_id}/connections")
async def list_campaign_connections(
    campaign_id: str,
    call: AuditorCall,
    limit: PageLimit = 50,
    cursor: PageCursor = None,
    outcome: Annotated[ItemOutcome | None, Query()] = None,
) -> Page[CampaignConnectionView]:
    """What became of each connection of a campaign, sorted by id; with `outcome` those that have ended so."""
    listing = call.listing("campaign-connections", limit, cursor, of=campaign_id, outcome=outcome)
    async with call.api.store.read() as tx:
        incident = await _campaign(tx, call, campaign_id)
        connections = await tx.incident_items.page(incident, listing.after, listing.most, outcome)
    views = [_connection_view(connection) for connection in connections]
    return listing.page(views, connections, lambda connection: connection.item.connection_id)


@router.post("/v1/campaigns/{campaign_id}/pause")
async def pause_campaign(campaign_id: str, call: AdminCall) -> CampaignView:
    """Have a campaign rest: nobody is asked or reminded. Consents of who was asked count all the same."""
    return await _pause(campaign_id, call, paused=True)


@router.post("/v1/campaigns/{campaign_id}/resume")
async def resume_campaign(campaign_id: str, call: AdminCall) -> CampaignView:
    """Have a paused campaign go on."""
    return await _pause(campaign_id, call, paused=False)


@router.post("/v1/campaigns/{campaign_id}/undo")
@dangerous("always: subjects consent to the client of before again", second=False)
async def undo_campaign(campaign_id: str, call: AdminCall) -> CampaignView:
    """Give both integrations their names of before, as long as no wave has begun."""
    call.require_step_up()

    async def write(tx: Transaction) -> CampaignView:
        await _campaign(tx, call, campaign_id)
        return await _view(tx, await orders.undo(tx, call.tenant, campaign_id, call.context, call.now))

    view = await call.write(write, tries=_TRIES)
    call.api.relay.notify()
    return view


@router.post("/v1/campaigns/{campaign_id}/end")
@dangerous("always: with stop, connections need their subjects", second=False)
async def end_campaign(
    campaign_id: str, call: AdminCall, body: CampaignEndBody | None = None
) -> CampaignView:
    """End a campaign whose waves have begun before its time."""
    call.require_step_up()
    rest = None if body is None else body.end

    async def write(tx: Transaction) -> CampaignView:
        await _campaign(tx, call, campaign_id)
        ending = await orders.end(tx, call.tenant, campaign_id, rest, call.context, call.now)
        return await _view(tx, ending)

    view = await call.write(write, tries=_TRIES)
    call.api.relay.notify()
    return view


@router.get(
    "/v1/campaigns/{campaign_id}/report",
    response_class=PlainTextResponse,
    responses={202: {"description": "It isn't done", "content": {"application/json": {"schema": _VIEW}}}},
)
async def get_campaign_report(campaign_id: str, call: AuditorCall) -> Response:
    """The signed report of a campaign: JSON Lines, as an incident's. 202 before it is done.

    `evergrant incident verify` checks it without Evergrant.
    """
    async with call.api.store.read() as tx:
        incident = await _campaign(tx, call, campaign_id)
        view = await _view(tx, incident)
    if incident.finished_at is None:
        return Response(view.model_dump_json(), 202, {"Retry-After": "1"}, "application/json")
    return await get_incident_report(campaign_id, call)


async def _pause(id: str, call: ApiCall, *, paused: bool) -> CampaignView:
    async def write(tx: Transaction) -> CampaignView:
        await orders.running(tx, call.tenant, id)
        incident = await pause_incident(tx, call.tenant, id, call.context, call.now, paused=paused)
        return await _view(tx, incident)

    view = await call.write(write, tries=_TRIES)  # a worker writes the row all the time
    call.api.relay.notify()
    return view


def _order(call: ApiCall, body: CampaignBody) -> CampaignOrder:
    return CampaignOrder(
        tenant=call.tenant,
        integration=body.integration,
        successor=body.successor,
        reason=body.reason,
        wave_size=body.wave_size,
        every=timedelta(seconds=body.every),
        first_wave=timedelta(seconds=body.first_wave),
        remind=tuple(timedelta(seconds=seconds) for seconds in body.remind),
        lasts=timedelta(seconds=body.lasts),
        end=body.end,
        context=call.context,
        at=call.now,
    )


async def _listening(tx: Transaction, call: ApiCall, integration: str) -> int:
    webhooks = await tx.webhooks.enabled(call.tenant)
    return sum(webhook.subscribes_to(EventType.NEEDS_REAUTH, integration) for webhook in webhooks)


async def _campaign(tx: Transaction, call: ApiCall, id: str) -> Incident:
    incident = await tx.incidents.get(call.tenant, IncidentId(id))
    is_one = incident is not None and incident.kind is IncidentKind.CAMPAIGN
    return require_found(incident if is_one else None)


async def _view(tx: Transaction, incident: Incident) -> CampaignView:
    campaign: Campaign = require_found(await tx.campaigns.get(incident.tenant, incident.id))
    asks = incident.state in (IncidentState.SELECTING, IncidentState.HOLDING, IncidentState.WORKING)
    more = asks and bool(
        incident.state is not IncidentState.WORKING or await tx.campaign_items.to_ask(incident, 1)
    )
    return CampaignView.of(
        incident,
        **campaign.model_dump(include={"end", "wave_size", "wave", "asked", "reminded"}),
        older=await _name(tx, incident, campaign.older),
        newer=await _name(tx, incident, campaign.newer),
        every=campaign.every_s,
        remind=list(campaign.remind_s),
        first_wave_at=incident.held_until,
        ends_at=incident.waits_until,
        next_wave_at=campaign.wave_at if more else None,
        consented=incident.outcomes.get(ItemOutcome.CONSENTED, 0),
        declined=await tx.campaign_items.declined(incident) if asks else 0,
    )


async def _name(tx: Transaction, incident: Incident, id: IntegrationId) -> str | None:
    integration = await tx.integrations.get_unchecked(incident.tenant, id)
    return None if integration is None else integration.name


def _connection_view(connection: ListedConnection) -> CampaignConnectionView:
    item = connection.item
    return CampaignConnectionView.of(
        item,
        last_leased_at=item.used_at,
        asked_at=item.told_at,
        state=connection.state or "erased",
    )
