"""`/v1/campaigns`: an integration has another OAuth client, and many subjects consent to it, wave by wave."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import PlainTextResponse, Response

from evergrant_server.access.approvals import dangerous, use_approval
from evergrant_server.access.incidents import pause_incident
from evergrant_server.api.campaigns import orders
from evergrant_server.api.campaigns.models import (
    DAY_S,
    LONGEST_S,
    CampaignBody,
    CampaignConnectionView,
    CampaignDetailView,
    CampaignEndBody,
    CampaignPlanView,
    CampaignView,
    PlannedWaveView,
    WaveView,
)
from evergrant_server.api.campaigns.orders import CampaignOrder
from evergrant_server.api.http.call import AdminCall, AdminCommand, ApiCall, AuditorCall, CommandResponse
from evergrant_server.api.http.models import Page, PageCursor, PageLimit
from evergrant_server.api.incidents import get_incident_report
from evergrant_server.core.connections.campaigns import Campaign, CampaignEnd
from evergrant_server.core.connections.incidents import (
    Incident,
    IncidentKind,
    IncidentState,
    ItemOutcome,
)
from evergrant_server.core.events import EventType
from evergrant_server.core.ids import IncidentId, IntegrationId
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction
from evergrant_server.store.connections.incidents import ListedConnection

router = APIRouter(tags=["campaigns"])

_TRIES = 100
_KINDS = (IncidentKind.CAMPAIGN,)
_VIEW = {"$ref": "#/components/schemas/CampaignView"}
Name = Annotated[str, Query(max_length=63)]


@router.get("/v1/campaigns/plan")
async def get_campaign_plan(
    call: AuditorCall,
    integration: Name,
    successor: Name,
    wave_size: Annotated[int, Query(ge=1, le=10_000)] = 100,
    every: Annotated[float, Query(ge=1, le=LONGEST_S)] = DAY_S,
    first_wave: Annotated[float, Query(ge=0, le=LONGEST_S)] = 3600.0,
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
        lasts=timedelta(seconds=LONGEST_S),
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
        subject=connection.subject,
        label=connection.label,
    )
