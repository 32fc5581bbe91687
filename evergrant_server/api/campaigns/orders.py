"""What API and console write for campaigns: the forecast, the order, the way back, and an early end.

From the order on the integration with the new client has the name by which apps know the one of before: each
new consent is to it. A worker asks the subjects of connections: see `activities.incidents.campaigns`.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from evergrant_server.access.transactions import record
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.campaigns import MONTH, Campaign, CampaignEnd
from evergrant_server.core.connections.incidents import Incident, IncidentKind, IncidentState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import IncidentId, Tenant, new_id
from evergrant_server.core.integrations import Integration, IntegrationState
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.outbox import incident_message
from evergrant_server.problems import invalid_request
from evergrant_server.store import Transaction
from evergrant_server.store.connections.campaigns import MeasuredConnection
from providers.definition.registry import Registry

MOST_FORECAST = 5_000  # connections that a plan counts leases of
_BEFORE = "-before"  # ends the name of an integration whose client was replaced
_LONGEST_NAME = 63


@dataclass(frozen=True)
class CampaignOrder:
    """A campaign as an admin orders it. `first_wave`: until then it can be undone."""

    tenant: Tenant
    integration: str
    successor: str
    reason: str
    wave_size: int
    every: timedelta
    first_wave: timedelta
    remind: tuple[timedelta, ...]
    lasts: timedelta
    end: CampaignEnd
    context: RequestContext
    at: datetime


@dataclass(frozen=True)
class PlannedWave:
    """One wave: who would be asked, and how often their connections were leased in the last month."""

    begins_at: datetime
    connections: int
    subjects: int
    leases: int


@dataclass(frozen=True)
class CampaignPlan:
    """What a campaign would do. `complete` False: more connections follow behind those of the waves."""

    connections: int
    complete: bool
    waves: list[PlannedWave]


async def plan(tx: Transaction, registry: Registry, order: CampaignOrder) -> CampaignPlan:
    """The waves that would follow, the least used connections first. Changes nothing. Raises Failure
    NOT_FOUND, INVALID_REQUEST."""
    older, newer = await _clients(tx, registry, order)
    await _require_unused(tx, newer)
    since = order.at - MONTH
    used = await tx.campaign_items.least_used(order.tenant, older.id, since, MOST_FORECAST + 1)
    complete = len(used) <= MOST_FORECAST
    used = used[:MOST_FORECAST]
    size = order.wave_size
    waves = [
        _wave(order, number, used[start : start + size])
        for number, start in enumerate(range(0, len(used), size))
    ]
    return CampaignPlan(len(used), complete, waves)


def _wave(order: CampaignOrder, number: int, used: list[MeasuredConnection]) -> PlannedWave:
    return PlannedWave(
        begins_at=order.at + order.first_wave + number * order.every,
        connections=len(used),
        subjects=len({connection.subject for connection in used}),
        leases=sum(connection.leases for connection in used),
    )


async def _clients(
    tx: Transaction, registry: Registry, order: CampaignOrder
) -> tuple[Integration, Integration]:
    """The integrations with the client of before and the new one. Raises Failure NOT_FOUND, and
    INVALID_REQUEST unless the same provider is asked for the same."""
    older = await tx.integrations.by_name(order.tenant, order.integration)
    newer = await tx.integrations.by_name(order.tenant, order.successor)
    if older is None or newer is None:
        raise Failure(ErrorCode.NOT_FOUND, "There is no such integration. See: evergrant integrations ls")
    if older.id == newer.id:
        raise invalid_request("successor", "It is the same integration: put one with the new client.")
    if newer.state is not IntegrationState.READY or not newer.client_id:
        why = f"{newer.name} isn't ready: {newer.problem or 'it has no client yet'}."
        raise invalid_request("successor", why)
    if older.server != newer.server:
        why = f"{newer.name} has another provider, issuer or params than {older.name}: put it with the same."
        raise invalid_request("successor", why)
    if older.binding is not newer.binding or older.login != newer.login:
        why = f"{newer.name} has another binding or login than {older.name}: apps would have to change."
        raise invalid_request("successor", why)
    _require_scopes(older, newer)
    versions = await tx.definitions.serving(order.tenant, older.provider)
    if registry.serving(older.provider, versions).response.additional_tokens is not None:
        why = "Its provider fills several token slots with one consent: a campaign can't move these."
        raise invalid_request("integration", why)
    return older, newer


async def _require_unused(tx: Transaction, newer: Integration) -> None:
    if await tx.connections.any_live(newer.tenant, newer.id):
        why = f"{newer.name} has connections of its own: put another integration with the new client."
        raise invalid_request("successor", why)


def _require_scopes(older: Integration, newer: Integration) -> None:
    """Raise Failure INVALID_REQUEST unless what connections have may be asked for again."""
    if newer.scope_ceiling is None:
        return
    if older.scope_ceiling is None or not set(older.scope_ceiling) <= set(newer.scope_ceiling):
        why = f"The scope ceiling of {newer.name} leaves out scopes that {older.name} allows."
        raise invalid_request("successor", why)


async def begin(tx: Transaction, registry: Registry, order: CampaignOrder) -> Incident:
    """Write the order, and let the new client's integration have the name. One campaign of an integration
    goes on at a time. Raises Failure NOT_FOUND, INVALID_REQUEST."""
    older, newer = await _clients(tx, registry, order)
    await tx.integrations.lock_against_use(newer)
    await _require_unused(tx, newer)
    if await tx.incidents.open_campaign(order.tenant, order.integration) is not None:
        why = f"A campaign of {order.integration} goes on. See: evergrant campaigns ls"
        raise invalid_request("integration", why)
    first = order.at + order.first_wave
    incident = Incident(
        tenant=order.tenant,
        id=IncidentId(new_id("inc")),
        kind=IncidentKind.CAMPAIGN,
        integration=order.integration,
        reason=order.reason,
        by=order.context.by,
        created_at=order.at,
        waits_until=order.at + order.lasts,
        held_until=first,
    )
    await tx.incidents.add(incident)
    await tx.campaigns.add(_campaign_of(order, incident.id, older, newer, first))
    await tx.integrations.rename(older, await _free_name(tx, older))
    await tx.integrations.rename(newer, order.integration)
    await tx.outbox.add(incident_message(incident, order.context, order.at))
    place = (tx, order.tenant, AuditAction.CAMPAIGN_BEGUN, incident.id, order.context, order.at)
    facts = {"integration": order.integration, "reason": order.reason, "end": order.end.value}
    clients = {"older": older.client_id, "newer": newer.client_id}
    await record(*place, **facts, clients=clients, ends_at=incident.waits_until.isoformat())
    return incident


def _campaign_of(
    order: CampaignOrder, id: IncidentId, older: Integration, newer: Integration, first: datetime
) -> Campaign:
    return Campaign(
        tenant=order.tenant,
        id=id,
        older=older.id,
        newer=newer.id,
        newer_name=newer.name,
        wave_size=order.wave_size,
        every_s=order.every.total_seconds(),
        remind_s=tuple(sorted(each.total_seconds() for each in order.remind)),
        end=order.end,
        wave_at=first,
    )


async def _free_name(tx: Transaction, older: Integration) -> str:
    """A name for the integration with the client of before, which no other has."""
    number = 1
    while True:
        ending = _BEFORE if number == 1 else f"{_BEFORE}-{number}"
        name = f"{older.name[: _LONGEST_NAME - len(ending)].rstrip('-')}{ending}"
        if await tx.integrations.by_name(older.tenant, name) is None:
            return name
        number += 1


async def undo(tx: Transaction, tenant: Tenant, id: str, context: RequestContext, now: datetime) -> Incident:
    """Give both integrations the names of before, as long as no wave has begun. Raises Failure NOT_FOUND,
    INVALID_REQUEST."""
    incident = await running(tx, tenant, id)
    campaign = await tx.campaigns.get(tenant, incident.id)
    begun = incident.state not in (IncidentState.SELECTING, IncidentState.HOLDING)
    if begun or campaign is None or incident.integration is None:
        why = "A wave has begun: subjects are asked. End it early instead: evergrant campaigns end."
        raise invalid_request("campaign_id", why)
    older = await tx.integrations.get(tenant, campaign.older)
    newer = await tx.integrations.get(tenant, campaign.newer)
    if newer is not None:
        taken = await tx.integrations.by_name(tenant, campaign.newer_name) is not None
        await tx.integrations.rename(newer, await _free_name(tx, newer) if taken else campaign.newer_name)
    if older is not None:
        await tx.integrations.rename(older, incident.integration)
    undone = incident.undone((), now).__replace__(paused=False)
    undone = await tx.incidents.replace(undone, expected=incident.revision)
    place = (tx, tenant, AuditAction.CAMPAIGN_UNDONE, incident.id, context, now)
    await record(*place, integration=incident.integration)
    await tx.outbox.add(incident_message(undone, context, now))
    return undone


async def end(
    tx: Transaction,
    tenant: Tenant,
    id: str,
    rest: CampaignEnd | None,
    context: RequestContext,
    now: datetime,
) -> Incident:
    """Have the campaign end now; `rest`: what becomes of connections whose subjects haven't consented, None:
    what it says. Raises Failure NOT_FOUND, INVALID_REQUEST before its first wave."""
    incident = await running(tx, tenant, id)
    campaign = await tx.campaigns.get(tenant, incident.id)
    if campaign is None or incident.state is not IncidentState.WORKING:
        why = "Its waves haven't begun, or are over: undo it instead, or ask for its report."
        raise invalid_request("campaign_id", why)
    changed = campaign.__replace__(end=rest or campaign.end)
    if changed != campaign:
        await tx.campaigns.replace(changed, expected=campaign.revision)
    ending = incident.__replace__(waits_until=now, paused=False, idle=0)
    ending = await tx.incidents.replace(ending, expected=incident.revision)
    place = (tx, tenant, AuditAction.CAMPAIGN_CHANGED, incident.id, context, now)
    await record(*place, integration=incident.integration, ends_at=now.isoformat(), end=changed.end.value)
    await tx.outbox.add(incident_message(ending, context, now))
    return ending


async def running(tx: Transaction, tenant: Tenant, id: str) -> Incident:
    """The campaign, which hasn't ended. Raises Failure NOT_FOUND."""
    incident = await tx.incidents.get(tenant, IncidentId(id))
    is_one = incident is not None and incident.kind is IncidentKind.CAMPAIGN
    if incident is None or not is_one or incident.state in (IncidentState.REPORTING, IncidentState.DONE):
        raise Failure(ErrorCode.NOT_FOUND, "No such campaign goes on. See: evergrant campaigns ls")
    return incident
