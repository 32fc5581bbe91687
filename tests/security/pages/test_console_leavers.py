"""Leavers in the console: the plan, the order by a typed name, the way back, and who may."""

from evergrant_server.core.people.roles import PersonRole
from tests.fakes.api import Api
from tests.security.console import person_at_console

ORDER = {"subject": "alice", "reason": "HR-7"}


async def test_an_admin_plans_orders_by_typing_who_leaves_and_puts_back(api: Api):
    connection = await api.active(await api.integration(), subject="alice")
    browser = await person_at_console(api, PersonRole.TENANT_ADMIN)
    plan = await browser.page("/console/leavers/plan?subject=alice&reason=HR-7")
    assert f'<a href="/console/connections/{connection.id}">alice at crm</a>' in plan
    assert "<li>1 connection is stopped" in plan
    refused = await browser.send("/console/leavers", **ORDER, confirm="bob")
    assert (refused.status_code, "Type the person&#39;s name, alice" in refused.text) == (400, True)
    ordered = await browser.send("/console/leavers", **ORDER, confirm="alice")
    assert ordered.status_code == 303, ordered.text
    place = ordered.headers["location"]
    page = await browser.page(place)
    assert "stopped, can be put back" in page
    assert ">alice at crm</a>" in page
    assert (await api.row(connection.tenant, connection.id)).held_by is not None
    held = await browser.page(f"/console/connections/{connection.id}")
    assert ("under Leavers it is put back" in held, "/reconnect" in held, "/revoke" in held) == (
        True,
        False,
        True,
    )
    back = await browser.send(f"{place}/undo")
    assert (back.status_code, back.headers["location"]) == (303, place)
    assert (await api.row(connection.tenant, connection.id)).held_by is None
    assert "put back" in await browser.page("/console/leavers")


async def test_a_grace_is_a_number_of_hours(api: Api):
    browser = await person_at_console(api, PersonRole.TENANT_ADMIN)
    path = "/console/leavers/plan?subject=alice&reason=HR-7&hours=soon"
    refused = await browser.browser.get(path)
    assert (refused.status_code, 'value="alice"' in refused.text) == (400, True), "what was typed stays"
    assert 'id="hours-problem"' in refused.text


async def test_an_auditor_reads_and_orders_nothing(api: Api):
    connection = await api.active(await api.integration(), subject="alice")
    browser = await person_at_console(api, PersonRole.AUDITOR)
    page = await browser.page("/console/leavers")
    assert "Show what would follow" not in page
    refused = await browser.send("/console/leavers", **ORDER, confirm="alice")
    assert refused.status_code == 403
    assert (await api.row(connection.tenant, connection.id)).held_by is None
