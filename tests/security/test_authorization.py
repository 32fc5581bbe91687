"""Who may do what: every route of the application against ids of another tenant and another app."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.definition import DefinitionState
from tests.fakes.api import OTHER, TENANT, Api
from tests.fakes.rows import a_definition, an_approval

# What each route needs to be worth calling; a route that isn't here fails the suite.
BODIES: dict[str, Any] = {
    "PUT /v1/integrations/{name}": {"provider": "gitlab", "client_id": "c", "client_secret": "s"},
    "PUT /v1/apps/{name}": {},
    "PUT /v1/apps/{name}/permits/{permit_name}": {"integration": "*", "actions": ["token"]},
    "POST /v1/providers": {"definition": {}},
    "POST /v1/connections": {"integration": "theirs", "subject": "user-1"},
    "PUT /v1/integrations/{name}/security-events": {"kind": "slack", "secret": "a-signing-secret"},
    "PUT /v1/webhooks/{name}": {"url": "https://hooks.example.com/in"},
    "POST /v1/providers/{provider}/approve": {"version": 1},
    "POST /v1/providers/{provider}/reject": {"version": 1, "reason": "no"},
    "POST /v1/providers/{provider}/roll-back": {"version": 1},
    "POST /v1/lease": {"integration": "theirs", "subject": "user-1"},
    "POST /v1/connections/{connection_id}/choose": {"choice": "acc-1"},
    "POST /v1/connections/{connection_id}/confirm": {"code": "c", "subject": "user-1"},
    "POST /v1/connections/{connection_id}/signatures": {"method": "GET", "url": "https://api.example/"},
    "POST /v1/connections/{connection_id}/proof": {"htm": "GET", "htu": "https://api.example/v1"},
}
OPEN = {"/oauth/client/{integration_id}", "/livez", "/readyz", "/metrics"}
OPEN |= {"/docs", "/openapi.json", "/static/evergrant.css"}
SIGNED = {"/v1/security-events/{receiver_id}"}  # a signature stands in for a key: test_security_events.py
PAGES = ("/connect/", "/oauth/callback/")
# Lists and the catalogue have no id: they must show nothing of another tenant.
LISTS = {"/v1/providers", "/v1/providers/{provider}", "/v1/integrations", "/v1/apps", "/v1/connections",
         "/v1/approvals", "/v1/access", "/v1/audit", "/v1/audit/verify", "/v1/webhooks",
         "/v1/connections/import", "/v1/connections/export"}  # fmt: skip

# Where the ids are in the query.
QUERIES = {"/v1/access/explain": "?app=ours&connection={connection_id}"}


def routes(api: Api) -> Iterator[tuple[str, str]]:
    """Every method and path that the application answers, from its own description."""
    for path, operations in api.app.openapi()["paths"].items():
        for method in operations:
            yield method.upper(), path


def guarded(api: Api) -> list[tuple[str, str]]:
    return [(m, p) for m, p in routes(api) if p not in OPEN | SIGNED and not p.startswith(PAGES)]


def filled(path: str, values: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: values[found.group(1)], path)


async def theirs(api: Api) -> tuple[Connection, dict[str, str]]:
    """Another tenant's world, whose name begins with ours, and every id in it."""
    integration = await api.integration("theirs", tenant=OTHER)
    connection = await api.active(integration, "at-secret")
    waits = a_definition(OTHER, {"name": "gitlab"}, api.clock.now(), state=DefinitionState.WAITING)
    async with api.worker.write() as tx:
        await tx.definitions.add(waits)
    key = await api.app_with("their-app", Action.ADMIN, Action.TOKEN, Action.CONNECT, tenant=OTHER)
    await api.call("PUT", "/v1/webhooks/theirs", key, json={"url": "https://theirs.example.com/in"})
    ping = await api.post("/v1/webhooks/theirs/test", key)
    async with api.worker.write() as tx:
        app = await tx.access.app_by_name(OTHER, "their-app")
        assert app is not None
        approval = await tx.approvals.put(an_approval(app, api.clock.now()), expected=None)
    values = {
        "name": "theirs",
        "provider": "gitlab",
        "connection_id": connection.id,
        "permit_name": "only",
        "approval_id": approval.id,
        "delivery_id": ping.json()["id"],
        "key_id": "_".join(key.split("_")[1:3]),
    }
    return connection, values


async def test_the_description_has_every_route(api: Api):
    """The matrix below is generated from it, so nothing may be missing there."""
    described = {path for _, path in routes(api)} | {"/docs", "/openapi.json", "/static/evergrant.css"}
    served = {path for route in api.app.router.routes if (path := getattr(route, "path", None))}
    included = {
        path
        for route in api.app.router.routes
        for inner in getattr(getattr(route, "original_router", None), "routes", ())
        if (path := getattr(inner, "path", None))
    }
    assert {path for path in served | included if path} <= described
    assert len(guarded(api)) > 25


async def test_every_route_without_a_key_is_401(api: Api):
    _, values = await theirs(api)
    for method, path in guarded(api):
        answer = await api.call(method, filled(path, values), json=BODIES.get(f"{method} {path}", {}))
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), (method, path)


async def test_every_route_with_another_tenants_ids_is_404_the_same_as_absent(api: Api):
    connection, values = await theirs(api)
    key = await api.app_with("ours", Action.ADMIN, Action.TOKEN, Action.CONNECT)
    absent = dict.fromkeys(values, "nothing-here") | {
        "connection_id": "con_0000000000000000000000",
        "key_id": "key_0000000000000000000000",
        "delivery_id": "dlv_0000000000000000000000",
        "approval_id": "apr_0000000000000000000000",
    }
    # names are per tenant: these make our own
    named = ("integrations", "apps", "webhooks")
    creates = {"POST /v1/providers", *(f"PUT /v1/{it}/{{name}}" for it in named)}
    tried = 0
    for method, path in guarded(api):
        route = f"{method} {path}"
        if (path in LISTS and route not in BODIES) or route in creates:
            continue
        body = BODIES.get(route, {})
        url = path + QUERIES.get(path, "")
        foreign = await api.call(method, filled(url, values), key, json=body)
        nothing = await api.call(method, filled(url, absent), key, json=body)
        assert foreign.status_code == 404, (method, path, foreign.text)
        assert foreign.json() == nothing.json(), (method, path)
        tried += 1
    assert tried > 15
    assert await api.row(OTHER, connection.id) == connection


async def test_lists_show_nothing_of_another_tenant(api: Api):
    connection, _ = await theirs(api)
    key = await api.app_with("ours", Action.ADMIN, Action.TOKEN, Action.CONNECT)
    lists = ("integrations", "connections", "apps", "access", "access?format=csv", "audit", "webhooks")
    for path in map("/v1/{}".format, lists):
        answer = await api.get(path, key)
        assert answer.status_code == 200
        for hidden in (connection.id, "theirs", "their-app", OTHER):
            assert hidden not in answer.text, path


async def test_an_app_without_a_permit_sees_404_on_every_route_of_a_connection(api: Api):
    connection = await api.active(await api.integration())
    others = {
        "no permit": await api.app_with("a"),
        "another integration": await api.app_with("b", *Action, integration="crm2"),
        "another subject": await api.app_with("c", *Action, subjects=("user-2", "user", "user-11")),
    }
    for why, key in others.items():
        for method, path in guarded(api):
            if "{connection_id}" in path:
                body = BODIES.get(f"{method} {path}", {})
                answer = await api.call(method, path.format(connection_id=connection.id), key, json=body)
                assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), (why, method, path)
        assert (await api.lease(key)).status_code == 404
        assert (await api.get("/v1/connections", key)).json()["items"] == []
    assert await api.row(TENANT, connection.id) == connection


async def test_admin_routes_need_an_admin_permit_for_the_whole_tenant(api: Api):
    await api.integration()
    _, values = await theirs(api)
    not_admin = [
        await api.app_with("user", Action.TOKEN, Action.CONNECT, Action.PROXY),
        await api.app_with("one", Action.ADMIN, integration="crm2"),
        await api.app_with("few", Action.ADMIN, subjects=("user-1",)),
    ]
    prefixes = ("/v1/apps", "/v1/approvals", "/v1/access", "/v1/audit", "/v1/webhooks")
    for key in not_admin:
        for method, path in guarded(api):
            transfer = path in ("/v1/connections/import", "/v1/connections/export")
            if path.startswith(prefixes) or path.startswith("/v1/integrations/{name}") or transfer:
                url = filled(path, values | {"name": "crm"})
                body = BODIES.get(f"{method} {path}", {})
                answer = await api.call(method, url, key, json=body)
                assert (answer.status_code, answer.json()["code"]) == (403, "not_permitted"), (method, path)
        assert (await api.get("/v1/integrations", key)).json()["items"] == []


async def test_actions_are_not_interchangeable(api: Api):
    connection = await api.active(await api.integration())
    admin = await api.app_with("boss", Action.ADMIN)
    token = await api.app_with("reader", Action.TOKEN)
    connect = await api.app_with("asker", Action.CONNECT)
    at = f"/v1/connections/{connection.id}"
    new = {"integration": "crm", "subject": "user-2"}
    for key, path, body in (
        (admin, f"{at}/token", {}),
        (connect, f"{at}/token", {}),
        (admin, "/v1/connections", new),
        (token, "/v1/connections", new),
        (token, f"{at}/revoke", {}),
        (token, f"{at}/reauthorize", {}),
        (admin, f"{at}/reauthorize", {}),
    ):
        answer = await api.post(path, key, body)
        assert (answer.status_code, answer.json()["code"]) == (403, "not_permitted"), path
        assert "at-1" not in answer.text
    assert (await api.get(f"{at}/audit", token)).status_code == 403
    assert (await api.get(f"{at}/history", token)).status_code == 403


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("POST /v1/connections", {"integration": "crm", "subject": "u", "tenant": "acme-2"}),
        ("POST /v1/connections", {"integration": "crm", "subject": "u", "state": "active"}),
        ("POST /v1/connections", {"integration": "crm", "subject": "u", "generation": 7}),
        ("POST /v1/lease", {"integration": "crm", "subject": "user-1", "tenant": "acme-2"}),
        ("PUT /v1/apps/new", {"id": "app_0000000000000000000000"}),
        ("PUT /v1/apps/new", {"tenant": "acme-2"}),
        ("PUT /v1/apps/new", {"revision": 99}),
        ("PUT /v1/apps/boss/permits/x", {"integration": "*", "actions": ["token"], "app_id": "app_x"}),
        ("PUT /v1/webhooks/new", {"url": "https://hooks.example.com/in", "secret": "whsec_ours"}),
        ("PUT /v1/webhooks/new", {"url": "https://hooks.example.com/in", "tenant": "acme-2"}),
        ("PUT /v1/webhooks/new", {"url": "https://hooks.example.com/in", "disabled_by": "gone"}),
        ("PUT /v1/integrations/new", {"provider": "gitlab", "client_id": "c", "client_secret": "s",
                                      "endpoints": {"token_endpoint": "https://evil.example"}}),
        ("PUT /v1/integrations/new", {"provider": "gitlab", "client_id": "c", "client_secret": "s",
                                      "state": "ready"}),
    ],
)  # fmt: skip
async def test_mass_assignment_is_refused_and_nothing_written(api: Api, path: str, body: dict):
    await api.integration()
    admin = await api.app_with("boss", *Action)
    method, url = path.split()
    answer = await api.call(method, url, admin, json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), answer.text
    async with api.worker.read() as tx:
        assert await tx.connections.page(TENANT) == []
        assert [app.name for app in await tx.access.apps(TENANT)] == ["boss"]
        assert [it.name for it in await tx.integrations.page(TENANT)] == ["crm"]


async def test_scopes_never_widen_by_asking_again(api: Api):
    """Ceilings of permit and integration hold for new connections and for step-up alike."""
    integration = await api.integration(scope_ceiling=("read_user", "api"))
    connection = await api.active(integration)
    key = await api.app_with("asker", Action.CONNECT, ceiling=("read_user", "sudo"))
    for scopes in (["api"], ["sudo"], ["read_user", "api"]):
        again = await api.post(f"/v1/connections/{connection.id}/reauthorize", key, {"scopes": scopes})
        new = {"integration": "crm", "subject": "user-2", "scopes": scopes}
        for answer in (again, await api.post("/v1/connections", key, new)):
            assert (answer.status_code, answer.json()["code"]) == (403, "scope_not_permitted")
    good = await api.post(f"/v1/connections/{connection.id}/reauthorize", key, {"scopes": ["read_user"]})
    assert good.status_code == 200
