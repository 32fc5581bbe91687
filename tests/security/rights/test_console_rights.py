"""What gives, changes and takes rights in the console: who may, from which form, and after which login."""

import re
from collections.abc import Mapping
from typing import Any

import pytest

from evergrant_server.api.agents.delegation_rules import DelegationRuleBody
from evergrant_server.api.apps.permits import PermitBody
from evergrant_server.api.apps.routes import AppBody
from evergrant_server.api.apps.trusted_issuers import TrustedIssuerBody
from evergrant_server.api.http.models import Body
from evergrant_server.api.oauth.clients import OAuthClientBody
from evergrant_server.api.people.login_rules import AdminLoginBody, ClientLoginBody
from evergrant_server.core.access import Action
from evergrant_server.core.people.roles import PersonRole
from evergrant_server.core.people.sessions import STEP_UP_LASTS
from tests.fakes.api import TENANT, Api
from tests.security.console import ConsoleBrowser, at_console, person_at_console
from tests.security.isolation.routes import RIGHTS, parameter
from tests.security.isolation.test_other_tenants import rows_of
from tests.security.isolation.world import a_world
from tests.security.people import ORIGIN

PAGES = (
    *("apps", "apps/{app}", "rules", "clients", "clients/{oauth_client_id}", "authorizations", "people"),
    *("approvals", "audit", "audit/{audit_place}", "apps/{app}/reach"),
)
# what is refused to a login of hours ago: it gives something, or takes how apps and people prove who they are
GIVES = (
    *("new/credential", "new/permit", "new/rule", "rules/{name}", "rules/{name}/delete", "new/issuer"),
    *("issuers/{name}/delete", "new/client", "clients/{oauth_client_id}/edit", "people-login"),
    *("people-login/delete", "client-login", "client-login/delete"),
)


def sent(route: str, world: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The path and the fields of a form, in a world."""
    path = route.removeprefix("POST ")
    names = {
        name: world[parameter(path, name)]
        for name in ("name", "permit_name", "credential_name")
        if f"{{{name}}}" in path
    }
    return path.format_map({**world, **names}), {
        name: text.format_map(world) for name, text in RIGHTS[route].items()
    }


async def told(api: Api) -> dict[str, list[Any]]:
    """What the store has, but for the sessions' last uses."""
    rows = await rows_of(api, TENANT)
    return {name: rows[name] for name in rows if name not in ("person_session", "audit", "audit_tree")}


async def test_csrf_another_sites_form_changes_no_right(api: Api):
    world = await a_world(api, TENANT)
    browser = await at_console(api, await api.app_with("boss", Action.ADMIN))
    token, before = await browser.csrf("/console/connections"), await told(api)
    for route in RIGHTS:
        path, fields = sent(route, world)
        for csrf, headers in ((token, {"Origin": "https://evil.example"}), ("0" * 64, {"Origin": ORIGIN})):
            answer = await browser.browser.post(path, data={"csrf": csrf, **fields}, headers=headers)
            assert answer.status_code in (400, 403), path
    assert await told(api) == before


async def test_an_auditor_reads_the_pages_and_changes_no_right(api: Api):
    world = await a_world(api, TENANT)
    browser = await person_at_console(api, PersonRole.AUDITOR)
    before = await told(api)
    for page in PAGES:
        shown = await browser.page(f"/console/{page.format_map(world)}")
        for act in (
            "/edit",
            "/delete",
            "/remove",
            "/console/new/",
            "/new/permit",
            "/end",
            "/switch",
            "/read",
        ):
            assert f'{act}"' not in shown.replace('href="/console/new/audit"', ""), (page, act)
    for route in RIGHTS:
        path, fields = sent(route, world)
        assert (await browser.send(path, **fields)).status_code == 403, path
        form = await browser.browser.get(path)
        assert form.status_code in (403, 405), path
    assert await told(api) == before


@pytest.mark.parametrize("actions", [(Action.TOKEN, Action.PROXY), (Action.CONNECT, Action.STORIES)])
async def test_an_app_without_admin_sees_none_of_the_tenants_rights(api: Api, actions: tuple[Action, ...]):
    world = await a_world(api, TENANT)
    browser = await at_console(api, await api.app_with("small", *actions))
    for page in PAGES:
        answer = await browser.browser.get(f"/console/{page.format_map(world)}")
        assert (answer.status_code, "not_permitted" in answer.text) == (403, True), page
    for route in RIGHTS:
        path, fields = sent(route, world)
        assert (await browser.send(path, **fields)).status_code == 403, path


async def test_what_gives_rights_needs_a_login_of_moments_ago_and_leads_to_it(api: Api):
    world = await a_world(api, TENANT)
    stale = api.clock.now() - STEP_UP_LASTS
    browser = await person_at_console(api, PersonRole.TENANT_ADMIN, authenticated_at=stale)
    before = await told(api)
    refused: list[str] = []
    for route in RIGHTS:
        if not route.endswith(GIVES) and "permits/{permit_name}" not in route:
            continue
        path, fields = sent(route, world)
        if "permit" in path and not path.endswith("/remove"):
            fields |= {
                "step": "save",
                "actions": "token",
                "revision": "" if path.endswith("new/permit") else "1",
            }
        if path.endswith("/remove"):
            continue  # of an allow: it takes a right away
        changes = {"audience": "b", "roles.auditor": "others"}  # what is there already gives nothing
        fields |= {name: text for name, text in changes.items() if name in fields}
        answer = await browser.send(path, **fields)
        assert "/login?tenant=acme&amp;step_up=true" in answer.text, (path, answer.text)
        assert (answer.status_code, "step_up_required" in answer.text) == (403, True), path
        refused.append(path)
    assert len(refused) > 8
    assert await told(api) == before


async def one(api: Api, role: PersonRole = PersonRole.TENANT_ADMIN) -> ConsoleBrowser:
    return await person_at_console(api, role)


async def test_taking_away_is_never_in_the_way_of_a_login(api: Api):
    world = await a_world(api, TENANT)
    stale = api.clock.now() - STEP_UP_LASTS
    browser = await person_at_console(api, PersonRole.TENANT_ADMIN, authenticated_at=stale)
    for path, confirm in (
        (f"/console/people/{world['session_id']}/end", ""),
        (f"/console/authorizations/{world['family_id']}/end", ""),
        (f"/console/clients/{world['oauth_client_id']}/switch", ""),
        (f"/console/apps/{world['app']}/permits/{world['permit']}/remove", world["permit"]),
        (f"/console/apps/{world['app']}/credentials/{world['credential']}/remove", world["credential"]),
        (f"/console/apps/{world['app']}/disable", ""),
        (f"/console/apps/{world['app']}/delete", world["app"]),
    ):
        answer = await browser.send(path, confirm=confirm, disabled="yes")
        assert answer.status_code == 303, (path, answer.text)


async def test_what_is_deleted_is_named_first(api: Api):
    world = await a_world(api, TENANT)
    browser = await one(api)
    before = await told(api)
    deletions = [route for route in RIGHTS if "confirm" in RIGHTS[route]]
    assert len(deletions) >= 7
    for route in deletions:
        path, _ = sent(route, world)
        for confirm in ("", "another"):
            answer = await browser.send(path, confirm=confirm)
            assert (answer.status_code, 'id="confirm-problem"' in answer.text) == (400, True), path
    assert await told(api) == before


@pytest.mark.parametrize(
    ("path", "body", "elsewhere"),
    [
        ("new/app", AppBody, {"disabled"}),  # a page of its own
        ("new/permit", PermitBody, {"mode"}),  # as `observe`
        ("new/rule", DelegationRuleBody, set[str]()),
        ("new/issuer", TrustedIssuerBody, set[str]()),
        ("new/client", OAuthClientBody, set[str]()),
        ("people-login", AdminLoginBody, {"roles"}),  # each role by itself
        ("client-login", ClientLoginBody, set[str]()),
    ],
)
async def test_a_form_has_every_member_that_it_writes(
    api: Api, path: str, body: type[Body], elsewhere: set[str]
):
    """Else the console would set it back to its default, whatever the API was told."""
    await api.app_with("sync")
    browser = await one(api)
    page = await browser.page(f"/console/{'apps/sync/' if path == 'new/permit' else ''}{path}")
    fields = set(re.findall(r'<(?:input|textarea|select)[^>]* name="([a-z_]+)"', page))
    assert set(body.model_fields) - elsewhere <= fields
