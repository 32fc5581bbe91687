"""The console's overview, its lists by urgency, and what is ordered for many connections at once."""

import re

import pytest

from evergrant_server.audit.filing import file_leases
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.bulk import BulkAction
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.people.roles import PersonRole
from tests.fakes.api import TENANT, Api
from tests.security.console import at_console, person_at_console

HOSTILE = "<b>ann</b>@example.com"


async def failing(api: Api, connection: Connection) -> Connection:
    now = api.clock.now()
    refused = ErrorCode.CLIENT_REJECTED
    return await api.change(connection, lambda row: row.refresh_failed(refused, now, token_over=True))


async def test_the_overview_leads_to_the_connections_that_need_somebody(api: Api):
    crm = await api.integration("crm")
    await failing(api, await api.active(crm, subject=HOSTILE))
    await api.active(crm, subject="well")
    browser = await at_console(api, await api.app_with("boss", Action.ADMIN))
    page = await browser.page("/console")
    assert 'aria-current="page"' in page or 'aria-current="true"' in page
    link = re.search(r'href="(/console/connections\?[^"]+)">1 failing', page)
    assert link is not None
    listed = await browser.page(link[1].replace("&amp;", "&"))
    assert "&lt;b&gt;ann&lt;/b&gt;" in listed
    assert HOSTILE not in listed
    assert ">well<" not in listed


async def test_plots_have_a_title_and_their_numbers_in_a_table(api: Api):
    _, key = await api.active_for("boss", Action.ADMIN, Action.TOKEN)
    assert (await api.lease(key)).status_code == 200
    browser = await at_console(api, key)
    assert "Nothing is counted in the last two days" in await browser.page("/console")
    await file_leases(api.worker)
    page = await browser.page("/console")
    assert page.count('<svg class="plot"') == 2
    assert "1 leases." in page
    assert "<details>" in page


async def test_a_visitor_without_the_whole_tenant_sees_what_its_permits_cover(api: Api):
    crm, mail = await api.integration("crm"), await api.integration("mail")
    for integration in (crm, mail):
        await failing(api, await api.active(integration))
    browser = await at_console(api, await api.app_with("crm-only", Action.CONNECT, integration="crm"))
    page = await browser.page("/console")
    assert "crm" in page
    assert "mail" not in page
    for title in ("What ends within", "Keys and backups", "Leases and refreshes"):
        assert title not in page
    assert "With many at once" not in await browser.page("/console/connections")


async def test_totals_are_links_and_those_that_need_somebody_come_first(api: Api):
    crm = await api.integration("crm")
    await api.active(crm, subject="a-well-one")
    await failing(api, await api.active(crm, subject="failing"))
    gone = await api.active(crm, subject="gone")
    await api.change(gone, lambda row: row.rejected(ErrorCode.GRANT_REJECTED, api.clock.now()))
    browser = await at_console(api, await api.app_with("boss", Action.ADMIN))
    page = await browser.page("/console/connections")
    assert re.findall(r'/console/connections/con_\w+">([\w-]+)</a>', page) == [
        "gone",
        "failing",
        "a-well-one",
    ]
    totals = re.findall(r">([\w ]+) <strong>(\d+)</strong>", page)
    assert totals == [("all", "3"), ("failing", "1"), ("active", "2"), ("needs a new consent", "1")]
    assert "a-well-one" not in await browser.page("/console/connections?search=f")
    assert "a-well-one" in await browser.page("/console/connections?subject=a-well")


async def test_an_expired_token_says_why_beside_active(api: Api):
    await api.active_for("boss", Action.ADMIN)
    api.clock.advance(4000)
    browser = await at_console(api, await api.app_with("auditor", Action.AUDIT))
    page = await browser.page("/console/connections")
    assert "not asked for since" in page
    assert "no app has asked for a token since it expired" in page


async def test_ticked_connections_are_planned_and_ordered(api: Api):
    crm = await api.integration("crm")
    ann, bob = await api.active(crm, subject="ann"), await api.active(crm, subject="bob")
    browser = await at_console(api, await api.app_with("boss", Action.ADMIN))
    page = await browser.page("/console/connections")
    assert page.count('name="connection"') == 2
    plan = await browser.page(f"/console/bulk/plan?action=refresh&connection={ann.id}&connection={bob.id}")
    assert "Refresh: 2 connections" in plan
    answer = await browser.send(
        "/console/bulk", action="refresh", connections=f"{ann.id} {bob.id}", reason="INC-9"
    )
    assert answer.status_code == 303, answer.text
    (record,) = await api.records(AuditAction.BULK_OPENED)
    assert record.detail == {"action": "refresh", "reason": "INC-9", "ticked": 2}
    page = await browser.page(answer.headers["location"])
    assert "0 of 0 connections" in page
    place = answer.headers["location"]
    assert (await browser.send(f"{place}/pause")).status_code == 303
    assert "Go on" in await browser.page(place)
    assert (await browser.send(f"{place}/resume")).status_code == 303
    assert "INC-9" in await browser.page("/console/bulk")
    assert "No connection is ticked" in await browser.page("/console/bulk/plan")


@pytest.mark.parametrize("action", [BulkAction.REVOKE, BulkAction.LABEL])
async def test_danger_types_the_name_and_takes_an_admin_of_the_tenant(api: Api, action: BulkAction):
    await api.active(await api.integration("crm"))
    browser = await at_console(api, await api.app_with("boss", Action.ADMIN))
    path = f"/console/bulk/plan?action={action}&whole=yes&integration=crm"
    assert "Type crm, the name of the integration, to confirm" in await browser.page(path)
    fields = {"action": action.value, "integration": "crm", "reason": "INC-9"}
    fields |= {"label": "work"} if action is BulkAction.LABEL else {}
    wrong = await browser.send("/console/bulk", **fields, confirm="crn")
    assert (wrong.status_code, "1 connections" in wrong.text) == (400, True)
    assert 'id="confirm-problem"' in wrong.text
    assert 'value="INC-9"' in wrong.text, "it comes back filled"
    auditor = await person_at_console(api, PersonRole.AUDITOR, TENANT)
    assert "takes an admin of the whole tenant" in await auditor.page(path)
    assert (await auditor.send("/console/bulk", **fields, confirm="crm")).status_code == 403
    assert await api.records(AuditAction.BULK_OPENED) == []
    assert (await browser.send("/console/bulk", **fields, confirm="crm")).status_code == 303


async def test_asking_for_new_consents_says_who_hears_it(api: Api):
    browser = await at_console(api, await api.app_with("boss", Action.ADMIN))
    page = await browser.page("/console/bulk/plan?action=reconnect&whole=yes")
    assert "nor make a link" in page
    assert "no webhook: apps learn it with their next lease alone" in page
