"""Rules, trusted issuers, clients, what people authorized, and people in the console."""

import re
from typing import Any

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.ids import OAuthClientId
from evergrant_server.core.oauth.authorizations import FamilyEnd
from evergrant_server.core.oauth.clients import ClientKind, GatewayClient
from evergrant_server.core.people.roles import Person, PersonRole
from tests.fakes.api import TENANT, Api
from tests.fakes.rows import a_family
from tests.security.console import ConsoleBrowser, at_console, person_at_console
from tests.security.isolation.world import a_world
from tests.security.people import put_session

RULE = {"issuer": "staff", "token_type": "id_token", "audience": "portal", "actors": "agent, helper"}


async def an_admin(api: Api) -> tuple[ConsoleBrowser, str]:
    key = await api.app_with("boss", Action.ADMIN)
    return await at_console(api, key), key


async def an_issuer(api: Api, browser: ConsoleBrowser, **changes: str) -> str:
    typed = {"name": "staff", "kind": "oidc", "issuer": "https://login.acme.example", **changes}
    answer = await browser.send("/console/new/issuer", **typed)
    return answer.headers.get("location", answer.text)


async def test_an_issuer_is_trusted_read_and_removed_with_what_names_it(api: Api):
    browser, admin = await an_admin(api)
    assert await an_issuer(api, browser) == "/console/rules?done=issuer-saved"
    page = await browser.page("/console/rules?done=issuer-saved")
    for shown in ("https://login.acme.example", "A worker reads its keys now", "/console/issuers/staff/read"):
        assert shown in page
    assert "an issuer of this name" in await an_issuer(api, browser)
    before = len(await api.records(AuditAction.TRUSTED_ISSUER_PUT))
    assert (await browser.send("/console/issuers/staff/read")).status_code == 303
    assert len(await api.records(AuditAction.TRUSTED_ISSUER_PUT)) == before + 1
    for app in ("agent", "helper"):
        await api.app_with(app, Action.PROXY)
    assert (await browser.send("/console/new/rule", name="portal", **RULE)).status_code == 303
    page = await browser.page("/console/issuers/staff/delete")
    assert "<li>1 delegation rule that names it" in page
    assert "<li>0 credentials of apps that name it" in page
    answer = await browser.send("/console/issuers/staff/delete", confirm="staff")
    assert answer.headers["location"] == "/console/rules?done=issuer-deleted"
    for path in ("/v1/issuers/staff", "/v1/delegation-rules/portal"):
        assert (await api.get(path, admin)).status_code == 404


@pytest.mark.parametrize(
    ("typed", "field"),
    [
        ({"issuer": "http://login.acme.example"}, "issuer"),
        ({"kind": "spiffe", "issuer": "spiffe://acme.example"}, "jwks_uri"),
        ({"kind": "ldap"}, "kind"),
        ({"name": "A"}, "name"),
        ({"jwks_uri": "ftp://keys"}, "jwks_uri"),
    ],
)
async def test_an_issuer_that_is_wrong_is_refused_at_its_field(api: Api, typed: dict[str, str], field: str):
    browser, _ = await an_admin(api)
    assert f'id="{field}-problem"' in await an_issuer(api, browser, **typed)
    assert await api.records(AuditAction.TRUSTED_ISSUER_PUT) == []


async def test_a_rule_is_made_changed_and_deleted(api: Api):
    browser, admin = await an_admin(api)
    await an_issuer(api, browser)
    for app in ("agent", "helper"):
        await api.app_with(app, Action.PROXY)
    assert "staff: https://login.acme.example" in await browser.page("/console/new/rule")
    answer = await browser.send("/console/new/rule", name="portal", **RULE)
    assert answer.headers["location"] == "/console/rules?done=rule-made"
    again = await browser.send("/console/new/rule", name="portal", **RULE)
    assert (again.status_code, "a rule of this name" in again.text) == (409, True)
    path = "/console/rules/portal"
    assert 'value="agent helper"' in await browser.page(path)
    changed = {**RULE, "actors": "", "claim": "email", "domains": "acme.example", "clients": "web-1 = agent"}
    assert (await browser.send(path, **changed)).status_code == 303
    rule = (await api.get("/v1/delegation-rules/portal", admin)).json()
    assert (rule["clients"], rule["actors"], rule["domains"]) == ({"web-1": "agent"}, [], ["acme.example"])
    assert "web-1 = agent" in await browser.page(path)
    for typed, field in (
        ({"actors": ""}, "actors"),
        ({"actors": "nobody"}, "actors"),
        ({"issuer": "none"}, "issuer"),
        ({"domains": "acme.example"}, "domains"),
        ({"clients": "web-1"}, "clients"),
        ({"token_type": "id_jag"}, "audience"),
    ):
        refused = await browser.send(path, **{**RULE, **typed})
        assert (refused.status_code, f'id="{field}-problem"' in refused.text) == (400, True), typed
    assert (
        (await browser.send(f"{path}/delete", confirm="portal")).headers["location"].endswith("rule-deleted")
    )
    assert (await api.get("/v1/delegation-rules/portal", admin)).status_code == 404


async def test_a_client_is_registered_with_an_id_and_no_secret_and_changed(api: Api):
    browser, admin = await an_admin(api)
    url = "https://agent.example/cb"
    answer = await browser.send("/console/new/client", name="<b>Coder", redirect_uris=f"{url}\n{url}/2")
    path = answer.headers["location"].partition("?")[0]
    id = path.rpartition("/")[2]
    page = await browser.page(answer.headers["location"])
    assert (f'value="{id}"' in page, "It has no secret" in page, "<b>" in page) == (True, True, False)
    client = (await api.get(f"/v1/oauth-clients/{id}", admin)).json()
    assert (client["name"], client["redirect_uris"], client["auth_method"]) == (
        "<b>Coder",
        [url, f"{url}/2"],
        "none",
    )

    assert f"{url}\n{url}/2" in await browser.page(f"{path}/edit")
    for typed, field in (
        ({"redirect_uris": "javascript:alert(1)"}, "redirect_uris"),
        ({"redirect_uris": ""}, "redirect_uris"),
        ({"name": ""}, "name"),
        ({"jwks": "{}"}, "jwks"),
    ):
        refused = await browser.send(f"{path}/edit", **{"name": "Coder", "redirect_uris": url, **typed})
        assert (refused.status_code, f'id="{field}-problem"' in refused.text) == (400, True), typed
    assert (await browser.send(f"{path}/edit", name="Coder", redirect_uris=url)).status_code == 303
    client = (await api.get(f"/v1/oauth-clients/{id}", admin)).json()
    assert (client["name"], client["redirect_uris"], client["disabled"]) == ("Coder", [url], False)
    for act, disabled in (("yes", True), ("no", False)):
        assert (await browser.send(f"{path}/switch", disabled=act)).status_code == 303
        assert (await api.get(f"/v1/oauth-clients/{id}", admin)).json()["disabled"] is disabled
    acts = [record.detail.get("redirect_uris") for record in await api.records(AuditAction.OAUTH_CLIENT_PUT)]
    assert acts == [[url, f"{url}/2"], [url], None, None]
    assert (
        (await browser.send(f"{path}/delete", confirm="Coder")).headers["location"].endswith("?done=deleted")
    )
    assert (await api.get(f"/v1/oauth-clients/{id}", admin)).status_code == 404


async def test_as_which_app_clients_act_is_set_and_taken_away(api: Api):
    world = await a_world(api, TENANT)
    browser, admin = await an_admin(api)
    path = "/console/client-login"
    page = await browser.page(path)
    assert (f'value="{world["app"]}"' in page, page.count(" checked")) == (True, 2)
    typed = {"app": world["app"], "integration": world["issuer"], "claim": "email", "domains": "acme.example"}
    answer = await browser.send(path, **typed, documents="yes", device="yes")
    assert answer.headers["location"] == "/console/clients?done=login-saved", answer.text
    login = (await api.get("/v1/client-login", admin)).json()
    assert (login["claim"], login["registration"], login["documents"], login["device"]) == (
        *("email", False),
        *(True, True),
    )
    assert "whose id is the URL" in await browser.page("/console/clients")
    for wrong, field in (
        ({"app": "none"}, "app"),
        ({"integration": "none"}, "integration"),
        ({"domains": ""}, "domains"),
    ):
        refused = await browser.send(path, **{**typed, **wrong})
        assert (refused.status_code, f'id="{field}-problem"' in refused.text) == (400, True), wrong
    answer = await browser.send(f"{path}/delete", confirm=world["app"])
    assert answer.headers["location"] == "/console/clients?done=login-deleted"
    assert (await api.get("/v1/client-login", admin)).status_code == 404
    assert "No client may act yet" in await browser.page("/console/clients")


async def a_client_of_its_own(api: Api, kind: str, id: str) -> None:
    facts: dict[str, Any] = {"tenant": TENANT, "kind": ClientKind(kind), "created_at": api.clock.now()}
    client = GatewayClient(
        id=OAuthClientId(id), client_id=id, name="Own", redirect_uris=("http://127.0.0.1/",), **facts
    )
    async with api.worker.write() as tx:
        await tx.oauth_clients.add(client)


async def test_what_a_client_says_of_itself_no_admin_changes(api: Api):
    browser, admin = await an_admin(api)
    id = "cli_" + "1" * 22
    await a_client_of_its_own(api, "registered", id)
    assert f"/console/clients/{id}/edit" not in await browser.page(f"/console/clients/{id}")
    assert (await browser.browser.get(f"/console/clients/{id}/edit")).status_code == 403
    body = {"disabled": False, "name": "Other"}
    answer = await api.call("PUT", f"/v1/oauth-clients/{id}", admin, json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert (
        await api.call("PUT", f"/v1/oauth-clients/{id}", admin, json={"disabled": True})
    ).status_code == 200


async def test_what_people_authorized_is_listed_and_ended(api: Api):
    browser, admin = await an_admin(api)
    await api.app_with("agents", Action.PROXY)
    app, now = await api.app_named("agents"), api.clock.now()
    ann, bob = (a_family(app, f"{name}@acme.example", now) for name in ("ann", "bob"))
    async with api.worker.write() as tx:
        for family in (ann, bob):
            await tx.token_families.add(family)
    page = await browser.page("/console/authorizations")
    assert all(shown in page for shown in ("ann@acme.example", "bob@acme.example", "as agents", "live"))
    page = await browser.page("/console/authorizations?subject=bob@acme.example")
    assert ("ann@acme.example" in page, page.count("bob@acme.example") > 1) == (False, True)
    end = f"/console/authorizations/{ann.id}/end"
    assert "acts for ann@acme.example" in await browser.page(end)
    assert (await api.get(f"/v1/token-families/{ann.id}", admin)).json()["live"], "the question ends nothing"
    assert (await browser.send(end)).headers["location"] == "/console/authorizations?done=ended"
    family = (await api.get(f"/v1/token-families/{ann.id}", admin)).json()
    assert (family["live"], family["end"]) == (False, FamilyEnd.ENDED.value)
    assert (await api.get(f"/v1/token-families/{bob.id}", admin)).json()["live"]


async def test_who_is_logged_in_with_which_role_and_a_session_is_ended(api: Api):
    world = await a_world(api, TENANT)
    ann = Person(issuer="https://login.example", sub="ann", name="ann@acme.example")
    id, bearer = await put_session(api, TENANT, PersonRole.AUDITOR, person=ann)
    browser, _ = await an_admin(api)
    page = await browser.page("/console/people")
    for shown in (
        "ann@acme.example",
        "auditor",
        "the command line",
        "<code>board</code>",
        "https://login.example",
    ):
        assert shown in page
    secret = bearer.removeprefix("evg_ses_")
    assert secret not in page
    end = f"/console/people/{id}/end"
    assert "ann@acme.example" in await browser.page(end)
    assert (await api.get("/v1/sessions/current", bearer)).status_code == 200
    assert (await browser.send(end)).headers["location"] == "/console/people?done=ended"
    assert (await api.get("/v1/sessions/current", bearer)).status_code == 401
    assert end not in await browser.page("/console/people")
    assert world["session_id"] != id


async def test_roles_by_group_are_changed_and_taken_away(api: Api):
    world = await a_world(api, TENANT)
    browser, admin = await an_admin(api)
    path = "/console/people-login"
    page = await browser.page(path)
    assert re.search(r'<textarea id="roles.auditor"[^>]*>\s*board</textarea>', page)
    typed = {
        "integration": world["issuer"],
        "groups_claim": "roles",
        "roles.tenant_admin": "admins\r\nthe board",
    }
    answer = await browser.send(path, **typed)
    assert answer.headers["location"] == "/console/people?done=login-saved", answer.text
    login = (await api.get("/v1/admin-login", admin)).json()
    assert (login["roles"], login["groups_claim"]) == ({"tenant_admin": ["admins", "the board"]}, "roles")
    for wrong, field in (
        ({"integration": "none"}, "integration"),
        ({"integration": world["integration"]}, "integration"),
    ):
        refused = await browser.send(path, **{**typed, **wrong})
        assert (refused.status_code, f'id="{field}-problem"' in refused.text) == (400, True), wrong
    nobody = await browser.send(path, integration=world["issuer"])
    assert (nobody.status_code, 'role="alert"' in nobody.text) == (400, True)
    answer = await browser.send(f"{path}/delete", confirm=world["issuer"])
    assert answer.headers["location"] == "/console/people?done=login-deleted"
    assert (await api.get("/v1/admin-login", admin)).status_code == 404
    assert "No people log in" in await browser.page("/console/people")


async def test_one_who_ends_their_own_session_is_told_and_is_logged_out(api: Api):
    browser = await person_at_console(api, PersonRole.TENANT_ADMIN)
    (end,) = re.findall(r'href="(/console/people/ses_\w+/end)"', await browser.page("/console/people"))
    assert "It is yours: you are logged out." in await browser.page(end)
    assert (await browser.send(end)).status_code == 303
    assert (await browser.browser.get("/console/people")).headers["location"] == "/console/login"
