"""`/v1/campaigns` and its pages: which client a consent is to, what apps see of it, and who may order it."""

from datetime import timedelta
from typing import Any

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.incidents import IncidentItem, IncidentState, ItemStep
from evergrant_server.core.ids import ConsentId, IncidentId
from evergrant_server.core.integrations import Integration
from evergrant_server.core.people.roles import PersonRole
from tests.fakes.api import TENANT, Api
from tests.security.console import person_at_console

CAMPAIGNS = "/v1/campaigns"
ORDER: dict[str, Any] = {"integration": "crm", "successor": "crm-2026", "confirm": "crm", "reason": "OPS-9"}
CONNECT = {"integration": "crm", "subject": "user-1"}


async def two_clients(api: Api) -> tuple[Integration, Integration, str]:
    """The integrations, and the key of an admin."""
    older, newer = await api.integration(), await api.integration("crm-2026", client_id="client-2")
    return older, newer, await api.app_with("boss", Action.ADMIN)


async def asked(api: Api, id: str, connection: Connection) -> None:
    """What a worker writes once it has asked the connection's subject."""
    async with api.worker.write() as tx:
        incident = await tx.incidents.get(TENANT, IncidentId(id))
        assert incident is not None
        working = incident.__replace__(state=IncidentState.WORKING, selected=1)
        await tx.incidents.replace(working, expected=incident.revision)
        item = IncidentItem(
            tenant=TENANT,
            incident_id=incident.id,
            connection_id=connection.id,
            integration=connection.integration,
            provider=connection.provider,
            step=ItemStep.TOLD,
            told_at=api.clock.now(),
            wave=1,
            leases=7,
        )
        await tx.incident_items.add(item)


async def client_of(api: Api, consent: str) -> str:
    async with api.worker.read() as tx:
        row = await tx.consents.get(TENANT, ConsentId(consent))
    assert row is not None
    return row.integration_id


async def newest_consent(api: Api, connection: Connection) -> str:
    async with api.worker.read() as tx:
        row = await tx.consents.newest(TENANT, connection.id)
    assert row is not None
    return row.id


async def test_the_new_client_has_the_name_and_each_new_connection(api: Api):
    older, newer, boss = await two_clients(api)
    pipeline = await api.app_with("pipeline", Action.CONNECT, Action.TOKEN, integration="crm")
    await api.active(older, subject="user-1")
    begun = await api.post(CAMPAIGNS, boss, ORDER)
    assert begun.status_code == 202, begun.text
    view = begun.json()
    assert (view["older"], view["newer"], view["state"]) == ("crm-before", "crm", "selecting")
    assert view["next_wave_at"] == view["first_wave_at"]
    made = (await api.post("/v1/connections", pipeline, {**CONNECT, "subject": "new"})).json()
    assert made["integration"] == "crm"
    rows = [await api.row(TENANT, made["id"])]
    assert [row.integration_id for row in rows] == [newer.id]
    (message,) = [sent for sent in await api.outbox() if sent.kind == "advance_incident"]
    assert message.target == f"incident:{TENANT}:{view['id']}"
    (record,) = await api.records(AuditAction.CAMPAIGN_BEGUN)
    assert record.detail["clients"] == {"older": "client-1", "newer": "client-2"}


async def test_who_is_asked_gets_a_link_to_the_new_client_while_the_connection_works(api: Api):
    older, newer, boss = await two_clients(api)
    connection = await api.active(older, subject="user-1")
    pipeline = await api.app_with("pipeline", Action.CONNECT, Action.TOKEN, integration="crm")
    await api.app_with("second", Action.CONNECT, integration="crm")
    await api.made_by(connection, "pipeline")
    id = (await api.post(CAMPAIGNS, boss, ORDER)).json()["id"]
    api.clock.advance(60)
    before = (await api.post("/v1/connections", pipeline, CONNECT)).json()
    assert (before["state"], before["connect_url"]) == ("active", None), "it isn't asked yet"
    await asked(api, id, connection)
    first, second = [(await api.post("/v1/connections", pipeline, CONNECT)).json() for _ in range(2)]
    assert (first["id"], first["state"]) == (connection.id, "active")
    assert first["connect_url"] is not None
    assert second["connect_url"] == first["connect_url"], "an open link is given again"
    assert await client_of(api, await newest_consent(api, connection)) == newer.id
    assert (await api.lease(pipeline)).status_code == 200, "its grant is leased on"


async def test_another_app_than_made_it_sees_it_as_before(api: Api):
    older, _, boss = await two_clients(api)
    connection = await api.active(older, subject="user-1")
    await api.app_with("pipeline", Action.CONNECT)
    await api.made_by(connection, "pipeline")
    other = await api.app_with("other", Action.CONNECT)
    await asked(api, (await api.post(CAMPAIGNS, boss, ORDER)).json()["id"], connection)
    seen = await api.post("/v1/connections", other, CONNECT)
    assert seen.status_code == 200, seen.text
    assert (seen.json()["state"], seen.json()["connect_url"]) == ("active", None)


async def test_a_reauthorization_is_to_the_new_client_and_one_without_a_subject_to_its_own(api: Api):
    older, newer, boss = await two_clients(api)
    connection = await api.active(older, subject="user-1")
    own = await api.active(older, "at-2", subject="robot", flow=Flow.CLIENT_CREDENTIALS)
    await api.post(CAMPAIGNS, boss, ORDER)
    chief = await api.app_with("chief", Action.ADMIN, Action.CONNECT)
    for each, client in ((connection, newer), (own, older)):
        answer = await api.post(f"/v1/connections/{each.id}/reauthorize", chief)
        assert answer.status_code == 200, answer.text
        assert await client_of(api, await newest_consent(api, each)) == client.id


async def test_an_integration_of_another_server_under_the_name_gets_no_consent_of_the_connections_before(
    api: Api,
):
    older, newer, boss = await two_clients(api)
    connection = await api.active(older, subject="user-1")
    await api.post(CAMPAIGNS, boss, ORDER)
    async with api.worker.write() as tx:
        await tx.integrations.delete(TENANT, newer.id)
    chief = await api.app_with("chief", Action.ADMIN, Action.CONNECT)
    for number, elsewhere in enumerate(({"issuer": "https://other.example"}, {"params": {"domain": "b"}})):
        other = await api.integration(f"other-{number}", **elsewhere)
        async with api.worker.write() as tx:
            named = await tx.integrations.rename(other, "crm")
        answer = await api.post(f"/v1/connections/{connection.id}/reauthorize", chief)
        assert answer.status_code == 200, answer.text
        assert await client_of(api, await newest_consent(api, connection)) == older.id
        async with api.worker.write() as tx:
            await tx.integrations.delete(TENANT, named.id)


async def test_the_forecast_has_the_least_used_first_and_changes_nothing(api: Api):
    older, _, boss = await two_clients(api)
    for number in range(5):
        await api.active(older, f"at-{number}", subject=f"user-{number}")
    path = f"{CAMPAIGNS}/plan?integration=crm&successor=crm-2026&wave_size=2&every=60&first_wave=0"
    plan = (await api.get(path, boss)).json()
    assert (plan["connections"], plan["complete"], plan["confirm"]) == (5, True, "crm")
    assert [(wave["connections"], wave["subjects"]) for wave in plan["waves"]] == [(2, 2), (2, 2), (1, 1)]
    assert (await api.get("/v1/integrations/crm", boss)).json()["client_id"] == "client-1"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"confirm": "else"}, "confirm"),
        ({"successor": "crm"}, "successor"),
        ({"lasts": 60}, "body"),
        ({"successor": "erp"}, "successor"),
        ({"successor": "used"}, "successor"),
        ({"successor": "bound"}, "successor"),
        ({"successor": "narrow"}, "successor"),
    ],
)
async def test_what_cant_be_ordered_is_refused_with_the_field(api: Api, changes: dict[str, Any], field: str):
    await two_clients(api)
    await api.integration("erp", provider="github")
    await api.active(await api.integration("used"), subject="somebody")
    await api.integration("bound", binding="app")
    await api.integration("narrow", scope_ceiling=("read_user",))
    boss = await api.app_with("chief", Action.ADMIN)
    refused = await api.post(CAMPAIGNS, boss, ORDER | changes)
    assert refused.status_code in (400, 422), refused.text
    named = refused.json().get("field") or refused.json()["errors"][0]["field"]
    assert named in (field, ""), refused.text
    assert (await api.get("/v1/integrations/crm", boss)).json()["client_id"] == "client-1"


async def test_one_campaign_of_an_integration_goes_on_and_is_undone_before_its_first_wave(api: Api):
    older, newer, boss = await two_clients(api)
    third = await api.integration("crm-3")
    id = (await api.post(CAMPAIGNS, boss, ORDER)).json()["id"]
    again = await api.post(CAMPAIGNS, boss, {**ORDER, "successor": "crm-3"})
    assert again.status_code == 400, again.text
    early = await api.post(f"{CAMPAIGNS}/{id}/end", boss)
    assert early.status_code == 400, "its waves haven't begun"
    undone = (await api.post(f"{CAMPAIGNS}/{id}/undo", boss)).json()
    assert (undone["older"], undone["newer"], undone["state"]) == ("crm", "crm-2026", "reporting")
    names = {older.id: "crm", newer.id: "crm-2026", third.id: "crm-3"}
    async with api.worker.read() as tx:
        for each, name in names.items():
            integration = await tx.integrations.get(TENANT, each)
            assert integration is not None
            assert integration.name == name
    assert (await api.post(f"{CAMPAIGNS}/{id}/undo", boss)).status_code == 404, "it was undone"
    assert (await api.post(CAMPAIGNS, boss, {**ORDER, "successor": "crm-3"})).status_code == 202


async def test_it_is_paused_ended_early_and_shown_wave_by_wave(api: Api):
    older, _, boss = await two_clients(api)
    connection = await api.active(older, subject="user-1")
    id = (await api.post(CAMPAIGNS, boss, ORDER)).json()["id"]
    await asked(api, id, connection)
    late = await api.post(f"{CAMPAIGNS}/{id}/undo", boss)
    assert late.status_code == 400, "somebody is asked"
    assert (await api.post(f"{CAMPAIGNS}/{id}/pause", boss)).json()["paused"]
    assert not (await api.post(f"{CAMPAIGNS}/{id}/resume", boss)).json()["paused"]
    shown = (await api.get(f"{CAMPAIGNS}/{id}", boss)).json()
    assert shown["waves"] == [{"wave": 1, "connections": 1, "consented": 0, "leases": 7}]
    (row,) = (await api.get(f"{CAMPAIGNS}/{id}/connections", boss)).json()["items"]
    assert (row["connection_id"], row["wave"], row["step"]) == (connection.id, 1, "told")
    api.clock.advance(timedelta(minutes=1).total_seconds())
    ending = (await api.post(f"{CAMPAIGNS}/{id}/end", boss, {"end": "stop"})).json()
    assert (ending["end"], ending["ends_at"]) == ("stop", api.clock.now().isoformat().replace("+00:00", "Z"))
    assert (await api.get(f"{CAMPAIGNS}/{id}/report", boss)).status_code == 202
    assert (await api.get(CAMPAIGNS, boss)).json()["items"][0]["id"] == id
    assert (await api.get("/v1/incidents", boss)).json()["items"] == [], "it is no incident"


async def test_only_an_admin_of_the_tenant_orders_one(api: Api):
    await two_clients(api)
    for name, actions, limits in (
        ("auditor", (Action.AUDIT,), {}),
        ("of-crm", (Action.ADMIN,), {"integration": "crm"}),
    ):
        key = await api.app_with(name, *actions, **limits)
        assert (await api.post(CAMPAIGNS, key, ORDER)).status_code == 403


# --- in the console ---------------------------------------------------------------------------

_FIELDS = {"integration": "crm", "successor": "crm-2026", "reason": "OPS-9", "wave_size": "2"}
_PLAN = "/console/campaigns/plan?integration=crm&successor=crm-2026&reason=OPS-9&wave_size=2"


async def three_connections(api: Api) -> None:
    older = await api.integration()
    await api.integration("crm-2026", client_id="client-2")
    for number in range(3):
        await api.active(older, f"at-{number}", subject=f"user-{number}")


async def client_named(api: Api, name: str) -> str | None:
    async with api.worker.read() as tx:
        integration = await tx.integrations.by_name(TENANT, name)
    return None if integration is None else integration.client_id


async def test_an_admin_reads_the_forecast_begins_by_typing_the_name_pauses_and_undoes(api: Api):
    await three_connections(api)
    browser = await person_at_console(api, PersonRole.TENANT_ADMIN)
    assert "No campaign yet" in await browser.page("/console/campaigns")
    plan = await browser.page(_PLAN)
    assert "Waves, by the leases of the last month" in plan
    assert "<li>3 connections, whose subjects are asked" in plan
    refused = await browser.send("/console/campaigns", **_FIELDS, confirm="else")
    assert refused.status_code == 400
    assert await client_named(api, "crm") == "client-1"
    ordered = await browser.send("/console/campaigns", **_FIELDS, confirm="crm")
    assert ordered.status_code == 303, ordered.text
    assert await client_named(api, "crm") == "client-2"
    place = ordered.headers["location"]
    assert "A new client for crm" in await browser.page(place)
    assert (await browser.send(f"{place}/pause")).status_code == 303
    assert "Go on" in await browser.page(place)
    assert (await browser.send(f"{place}/undo")).status_code == 303
    assert await client_named(api, "crm") == "client-1"
    assert "undone" in await browser.page("/console/campaigns")


async def test_what_cant_be_planned_stands_at_its_field(api: Api):
    await three_connections(api)
    browser = await person_at_console(api, PersonRole.TENANT_ADMIN)
    for typed, words in (
        (_PLAN.replace("crm-2026", "crm"), "It is the same integration"),
        (_PLAN.replace("wave_size=2", "wave_size=two"), "use a whole number"),
        (f"{_PLAN}&remind_days=soon", "Use a number"),
    ):
        page = await browser.browser.get(typed)
        assert page.status_code == 400, page.text
        assert words in page.text


async def test_an_auditor_reads_and_begins_nothing(api: Api):
    await three_connections(api)
    browser = await person_at_console(api, PersonRole.AUDITOR)
    assert "Show what would follow" not in await browser.page("/console/campaigns")
    refused = await browser.send("/console/campaigns", **_FIELDS, confirm="crm")
    assert refused.status_code == 403
    assert await client_named(api, "crm") == "client-1"
