"""Campaigns in the console: the forecast, the order by a typed name, pause and undo, and who may."""

from evergrant_server.core.people.roles import PersonRole
from tests.fakes.api import TENANT, Api
from tests.security.console import person_at_console

FIELDS = {"integration": "crm", "successor": "crm-2026", "reason": "OPS-9", "wave_size": "2"}
PLAN = "/console/campaigns/plan?integration=crm&successor=crm-2026&reason=OPS-9&wave_size=2"


async def two_clients(api: Api) -> None:
    older = await api.integration()
    await api.integration("crm-2026", client_id="client-2")
    for number in range(3):
        await api.active(older, f"at-{number}", subject=f"user-{number}")


async def client_of(api: Api, name: str) -> str | None:
    async with api.worker.read() as tx:
        integration = await tx.integrations.by_name(TENANT, name)
    return None if integration is None else integration.client_id


async def test_an_admin_reads_the_forecast_begins_by_typing_the_name_pauses_and_undoes(api: Api):
    await two_clients(api)
    browser = await person_at_console(api, PersonRole.TENANT_ADMIN)
    assert "No campaign yet" in await browser.page("/console/campaigns")
    plan = await browser.page(PLAN)
    assert "Waves, by the leases of the last month" in plan
    assert "<strong>3</strong> connections, whose subjects are asked" in plan
    refused = await browser.send("/console/campaigns", **FIELDS, confirm="else")
    assert refused.status_code == 400
    assert await client_of(api, "crm") == "client-1"
    ordered = await browser.send("/console/campaigns", **FIELDS, confirm="crm")
    assert ordered.status_code == 303, ordered.text
    assert await client_of(api, "crm") == "client-2"
    place = ordered.headers["location"]
    assert "A new client for crm" in await browser.page(place)
    assert (await browser.send(f"{place}/pause")).status_code == 303
    assert "Go on" in await browser.page(place)
    assert (await browser.send(f"{place}/undo")).status_code == 303
    assert await client_of(api, "crm") == "client-1"
    assert "undone" in await browser.page("/console/campaigns")


async def test_what_cant_be_planned_stands_at_its_field(api: Api):
    await two_clients(api)
    browser = await person_at_console(api, PersonRole.TENANT_ADMIN)
    for typed, words in (
        (PLAN.replace("crm-2026", "crm"), "It is the same integration"),
        (PLAN.replace("wave_size=2", "wave_size=two"), "use a whole number"),
        (f"{PLAN}&remind_days=soon", "Use a number"),
    ):
        page = await browser.browser.get(typed)
        assert page.status_code == 400, page.text
        assert words in page.text


async def test_an_auditor_reads_and_begins_nothing(api: Api):
    await two_clients(api)
    browser = await person_at_console(api, PersonRole.AUDITOR)
    assert "Show what would follow" not in await browser.page("/console/campaigns")
    refused = await browser.send("/console/campaigns", **FIELDS, confirm="crm")
    assert refused.status_code == 403
    assert await client_of(api, "crm") == "client-1"
