"""A campaign of the small tenant that the pages show, and an integration with another client for the next."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from evergrant_server.core.connections.campaigns import Campaign
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.incidents import (
    Incident,
    IncidentItem,
    IncidentKind,
    IncidentState,
    ItemOutcome,
    ItemStep,
)
from evergrant_server.core.ids import IncidentId, IntegrationId, new_id
from tests.fakes.api import TENANT, Api


async def fill_campaigns(api: Api, connections: Iterable[Connection], noon: datetime) -> str:
    """One that goes on, of these connections; its id."""
    async with api.worker.read() as tx:
        crm = await tx.integrations.by_name(TENANT, "crm")
    assert crm is not None
    await api.integration("crm-2026", provider=crm.provider, **_same(crm.params, crm.issuer, crm.binding))
    begun = noon - timedelta(days=4)
    order = Incident(
        tenant=TENANT,
        id=IncidentId(new_id("inc")),
        kind=IncidentKind.CAMPAIGN,
        integration="mail",
        by="app:console",
        reason="OPS-118: the provider ends clients of before May",
        state=IncidentState.WORKING,
        created_at=begun,
        held_until=begun + timedelta(hours=1),
        waits_until=begun + timedelta(days=30),
        selected=412,
        ended=187,
        outcomes={"consented": 181, "gone": 6},
    )
    campaign = Campaign(
        tenant=TENANT,
        id=order.id,
        older=crm.id,
        newer=IntegrationId(new_id("int")),
        newer_name="mail-2026",
        wave_size=100,
        every_s=86_400.0,
        remind_s=(259_200.0, 604_800.0),
        wave=3,
        wave_at=noon + timedelta(hours=5),
        asked=294,
        reminded=71,
    )
    outcomes = (ItemOutcome.CONSENTED, None, ItemOutcome.GONE, None)
    async with api.worker.write() as tx:
        await tx.incidents.add(order)
        await tx.campaigns.add(campaign)
        for number, (connection, outcome) in enumerate(zip(connections, outcomes, strict=True)):
            step = ItemStep.LISTED if number == 3 else ItemStep.TOLD if outcome is None else ItemStep.ENDED
            item = IncidentItem(
                tenant=TENANT,
                incident_id=order.id,
                connection_id=connection.id,
                integration=connection.integration,
                provider=connection.provider,
                used_at=noon - timedelta(hours=2),
                step=step,
                outcome=outcome,
                told_at=None if number == 3 else begun + timedelta(days=number),
                leases=40 * number,
                wave=0 if number == 3 else number + 1,
                reminders=number % 2,
            )
            await tx.incident_items.add(item)
    return order.id


def _same(params: dict[str, str], issuer: str | None, binding: object) -> dict[str, object]:
    return {"params": params, "issuer": issuer, "binding": binding, "client_id": "client-2026"}
