"""What the console shows, and to whom: never more than the API's route to the same caller."""

import re

import pytest

from evergrant_server import audit
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.people.roles import PersonRole
from tests.fakes.api import TENANT, Api
from tests.security.console import at_console, person_at_console
from tests.security.isolation.world import a_world

OF_THE_TENANT = (
    "/console/apps",
    "/console/apps/boss",
    "/console/access",
    "/console/access?app=boss&connection=x",
)


@pytest.mark.parametrize("actions", [(Action.TOKEN,), (Action.CONNECT, Action.TOKEN, Action.EXPORT)])
async def test_apps_keys_and_permits_take_admin_or_audit(api: Api, actions: tuple[Action, ...]):
    browser = await at_console(api, await api.app_with("boss", *actions))
    page = await browser.page("/console/integrations")
    assert "/console/apps" not in page
    for path in OF_THE_TENANT:
        answer = await browser.browser.get(path)
        assert (answer.status_code, "not_permitted" in answer.text) == (403, True), path
    auditor = await person_at_console(api, PersonRole.AUDITOR)
    assert "/console/apps" in await auditor.page("/console/integrations")
    assert "boss" in await auditor.page("/console/apps")


async def test_an_admin_of_one_integration_sees_no_other(api: Api):
    await api.integration("crm")
    await api.integration("other")
    browser = await at_console(api, await api.app_with("boss", Action.ADMIN, integration="crm"))
    page = await browser.page("/console/integrations")
    assert re.findall(r'href="/console/integrations/(\w+)"', page) == ["crm"]
    assert (await browser.browser.get("/console/integrations/other")).status_code == 403
    assert "https://evergrant.test/oauth/callback/int_" in await browser.page("/console/integrations/crm")


async def test_an_app_with_its_permits_keys_and_credentials_and_no_secret(api: Api):
    own = await a_world(api, TENANT)
    browser = await person_at_console(api, PersonRole.AUDITOR)
    page = await browser.page(f"/console/apps/{own['app']}")
    for shown in (own["permit"], own["key_id"], own["credential"], "private key jwt", "live"):
        assert shown in page
    for hidden in ("evg_key_", "hush-hush", f"signing-secret-of-{TENANT}"):
        assert hidden not in page


async def test_an_integrations_failures_by_cause_and_no_word_of_a_provider_as_markup(api: Api):
    connection, key = await api.active_for("boss", Action.ADMIN)
    browser = await at_console(api, key)
    assert "No connection fails." in await browser.page("/console/integrations/crm")
    now, said = api.clock.now(), "<script>alert(1)</script> unknown client"
    await api.change(
        connection, lambda row: row.refresh_failed(ErrorCode.PROVIDER_ERROR, now, token_over=False)
    )
    words = {
        "reason": "provider_error",
        "undecided": {"since": now.isoformat()},
        "provider_said": {"status": 400, "error": "<b>", "description": said},
    }
    entry = AuditEntry(
        tenant=TENANT,
        at=now,
        action=AuditAction.REFRESH_FAILED,
        object=connection.id,
        context=RequestContext(by="worker"),
        detail=words,
    )
    async with api.worker.write() as tx:
        await audit.append(tx, entry)
    page = await browser.page("/console/integrations/crm")
    assert "<script>alert" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; unknown client" in page
    for shown in ("provider_error", "HTTP 400", "not known yet", "the only connection here", "Decided"):
        assert shown in page, shown


async def test_the_catalogue_is_found_by_name_and_shows_its_evidence(api: Api):
    browser = await at_console(api, await api.app_with("boss", Action.TOKEN))
    page = await browser.page("/console/providers?q=github")
    assert "/console/providers/github" in page
    assert "/console/providers/slack" not in page
    page = await browser.page("/console/providers/github")
    for shown in ("Evidence", "token endpoint", "https://docs.github.com/", "Sources that say otherwise"):
        assert shown in page


async def test_access_is_explained(api: Api):
    connection, key = await api.active_for("boss", Action.ADMIN)
    browser = await at_console(api, key)
    page = await browser.page(f"/console/access?app=boss&connection={connection.id}")
    assert "The permits refuse it" in page
    assert "Why not by another permit" in page
    answer = await browser.browser.get("/console/access?app=boss&connection=x&action=fly")
    assert (answer.status_code, "no such action" in answer.text) == (400, True)


async def test_pages_lead_through_all_connections_and_a_cursor_of_another_list_is_refused(api: Api):
    integration = await api.integration()
    made = {(await api.connection(integration, subject=f"user-{number}")).id for number in range(30)}
    browser = await at_console(api, await api.app_with("boss", Action.ADMIN))
    page, seen = await browser.page("/console/connections"), set[str]()
    for _ in range(2):
        seen |= set(re.findall(r'href="/console/connections/(con_\w+)"', page))
        following = re.search(r'href="(\?cursor=[^"]+)"[^>]*>Next page', page)
        if following is None:
            break
        page = await browser.page(f"/console/connections{following[1]}")
    assert seen == made
    for path in (
        "connections?cursor=x",
        "connections?state=flying",
        "integrations?cursor=x",
        "apps?cursor=x",
    ):
        assert (await browser.browser.get(f"/console/{path}")).status_code == 400, path
