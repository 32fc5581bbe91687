"""Incidents and leavers of the small tenant that the pages show."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from evergrant_server.core.connections.bulk import BulkAction, BulkFilter, BulkOrder
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.incidents import (
    Incident,
    IncidentItem,
    IncidentKind,
    IncidentState,
    ItemOutcome,
    ItemStep,
)
from evergrant_server.core.ids import BulkId, IncidentId, new_id
from evergrant_server.core.people.leavers import Leaver, Match, MatchedBy
from tests.fakes.api import TENANT, Api


async def fill_incidents(api: Api, connections: Iterable[Connection], noon: datetime) -> str:
    """One that waits for a provider, of these connections, and a drill that is done; the id of the first."""
    outcomes = (ItemOutcome.CONFIRMED, ItemOutcome.NOT_SUPPORTED, ItemOutcome.UNKNOWN, None)
    begun = noon - timedelta(minutes=9)
    facts = {"tenant": TENANT, "kind": IncidentKind.BREACH, "by": "app:console"}
    incident = Incident.model_validate(
        {
            **facts,
            "id": new_id("inc"),
            "reason": "INC-2291",
            "state": IncidentState.WORKING,
            "created_at": begun,
            "waits_until": begun + timedelta(days=1),
            "selected": 1_204,
            "ended": 1_187,
            "outcomes": {"confirmed": 1_102, "not_supported": 61, "unknown": 24},
        }
    )
    drill = incident.__replace__(
        id=IncidentId(new_id("inc")),
        integration="crm",
        reason="the drill of March",
        state=IncidentState.DONE,
        selected=3,
        ended=3,
        outcomes={"confirmed": 3},
        created_at=begun - timedelta(days=12),
        finished_at=begun - timedelta(days=12),
    )
    async with api.worker.write() as tx:
        await tx.incidents.add(incident)
        await tx.incidents.add(drill)
        for connection, outcome in zip(connections, outcomes, strict=True):
            item = IncidentItem(
                tenant=TENANT,
                incident_id=incident.id,
                connection_id=connection.id,
                integration=connection.integration,
                provider=connection.provider,
                used_at=noon - timedelta(hours=2),
                step=ItemStep.TOLD if outcome is None else ItemStep.ENDED,
                outcome=outcome,
            )
            await tx.incident_items.add(item)
    return incident.id


async def fill_leavers(api: Api, connections: Iterable[Connection], noon: datetime) -> str:
    """One whose connections can be put back, and one who has left; the id of the first."""
    begun = noon - timedelta(hours=3)
    leaves = Incident(
        tenant=TENANT,
        id=IncidentId(new_id("inc")),
        kind=IncidentKind.LEAVER,
        by="app:directory",
        reason="deactivated by SCIM",
        state=IncidentState.HOLDING,
        created_at=begun,
        held_until=begun + timedelta(days=1),
        waits_until=begun + timedelta(days=2),
        selected=4,
        ended=1,
        outcomes={"handed_over": 1},
        person="hash-of-kim",
        beside={"sessions": 2, "token_families": 1, "delegations": 0, "agents": 1},
    )
    left = leaves.__replace__(
        id=IncidentId(new_id("inc")),
        reason="HR-41",
        state=IncidentState.DONE,
        created_at=begun - timedelta(days=9),
        finished_at=begun - timedelta(days=8),
        ended=4,
        outcomes={"confirmed": 3, "not_supported": 1},
        person="hash-of-sam",
    )
    async with api.worker.write() as tx:
        for incident, subject in ((leaves, "kim@acme.example"), (left, "sam@acme.example")):
            await tx.incidents.add(incident)
            match = Match(subject=subject, by=MatchedBy.RULE)
            leaver = Leaver(tenant=TENANT, id=incident.id, subject=subject, matches=(match,))
            await tx.leavers.add(leaver)
        for number, connection in enumerate(connections):
            item = IncidentItem(
                tenant=TENANT,
                incident_id=leaves.id,
                connection_id=connection.id,
                integration=connection.integration,
                provider=connection.provider,
                used_at=noon - timedelta(hours=2) if number % 2 else None,
                step=ItemStep.LISTED if number else ItemStep.ENDED,
                outcome=None if number else ItemOutcome.HANDED_OVER,
                matched=MatchedBy.RULE.value,
            )
            await tx.incident_items.add(item)
    return leaves.id


async def fill_bulk_orders(api: Api, connections: Iterable[Connection], noon: datetime) -> str:
    """One order that goes on, of these connections, and one that is done; the id of the first."""
    outcomes = (ItemOutcome.RENEWED, ItemOutcome.FAILED, ItemOutcome.RECONNECT, None)
    begun = noon - timedelta(minutes=3)
    order = BulkOrder(
        tenant=TENANT,
        id=BulkId(new_id("blk")),
        action=BulkAction.REFRESH,
        filters=BulkFilter(integration="crm"),
        reason="INC-2304: the provider has changed its scopes",
        by="app:console",
        state=IncidentState.WORKING,
        created_at=begun,
        waits_until=begun + timedelta(days=1),
        selected=412,
        ended=187,
        outcomes={"renewed": 179, "failed": 3, "reconnect": 5},
    )
    done = order.__replace__(
        id=BulkId(new_id("blk")),
        action=BulkAction.REVOKE,
        reason="left the company",
        state=IncidentState.DONE,
        selected=3,
        ended=3,
        outcomes={"confirmed": 3},
        finished_at=begun,
    )
    async with api.worker.write() as tx:
        await tx.bulk_orders.add(order)
        await tx.bulk_orders.add(done)
        for connection, outcome in zip(connections, outcomes, strict=True):
            item = IncidentItem(
                tenant=TENANT,
                incident_id=IncidentId(order.id),
                connection_id=connection.id,
                integration=connection.integration,
                provider=connection.provider,
                step=ItemStep.TOLD if outcome is None else ItemStep.ENDED,
                outcome=outcome,
            )
            await tx.incident_items.add(item)
    return order.id
