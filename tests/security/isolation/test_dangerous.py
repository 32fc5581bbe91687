"""Every command that changes something: dangerous as its route declares, or by a rule not; and no PUT that
changes nothing is."""

import json
from pathlib import Path
from typing import Any

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.ids import Tenant
from evergrant_server.core.people.roles import PersonRole
from evergrant_server.core.people.sessions import STEP_UP_LASTS
from tests.fakes.api import Api, running_api
from tests.security.isolation.dangers import declared, reason
from tests.security.isolation.roles import bearer, is_last
from tests.security.isolation.routes import PROVED_OTHERWISE, requests_to, routes
from tests.security.isolation.world import a_world
from tests.security.people import put_session

ACME = Tenant("acme-of-dangers")
DENY = {"integration": "*", "actions": ["token"], "effect": "deny"}
_KEY = {
    "kty": "EC", "crv": "P-256", "alg": "ES256",
    "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
}  # fmt: skip
# Requests that are dangerous, where the usual ones of the matrix change nothing, or nothing dangerous.
DANGEROUS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "PUT /v1/apps/{name}": ({"app": "agent"}, {}),  # which is stopped
    "PUT /v1/agents/{name}": ({}, {"sponsor": "app:boss"}),  # by default it is who sends the request
    "PUT /v1/apps/{name}/permits/{permit_name}": ({}, {"integration": "*", "actions": ["token"]}),
    "DELETE /v1/apps/{name}/permits/{permit_name}": ({"permit": "deny"}, {}),
    "PUT /v1/apps/{name}/credentials/{credential_name}": (
        {},
        {"method": "private_key_jwt", "parameters": {"jwks": {"keys": [_KEY]}}},
    ),
    "PUT /v1/issuers/{name}": ({}, {"jwks_uri": "https://keys.example/jwks"}),
    "PUT /v1/delegation-rules/{name}": ({}, {"audience": "b"}),
    "PUT /v1/client-login": ({}, {"registration": False}),
    "PUT /v1/oauth-clients/{oauth_client_id}": ({}, {"disabled": False}),
    "PUT /v1/admin-login": ({}, {"groups_claim": "roles"}),
}


async def a_dangerous_world(api: Api) -> dict[str, str]:
    own = await a_world(api, ACME)
    boss = await api.app_with("boss", Action.ADMIN, tenant=ACME)
    deny = f"/v1/apps/{own['app']}/permits/deny"
    assert (await api.call("PUT", deny, boss, json=DENY)).status_code == 201
    off = await api.call("PUT", f"/v1/oauth-clients/{own['oauth_client_id']}", boss, json={"disabled": True})
    assert off.status_code == 200
    return own | {"deny": "deny"}


def sent(route: str, own: dict[str, str]) -> dict[str, Any]:
    """A request that is dangerous, if those of the route can be."""
    names, changes = DANGEROUS.get(route, ({}, {}))
    request = requests_to(route)[0].sent(own | {name: own[other] for name, other in names.items()})
    if changes:
        request["content"] = json.dumps(json.loads(request["content"] or "{}") | changes)
        request["headers"] = {"Content-Type": "application/json"}
    return request


def test_each_route_that_changes_something_is_declared_or_has_a_reason(api: Api):
    dangerous = declared(api.app)
    assert len(dangerous) > 20
    left = [route for route in routes(api.app) if route not in dangerous and reason(route) is None]
    assert left == []
    puts = {route for route in routes(api.app) if route.startswith("PUT ") and reason(route) is None}
    assert puts <= set(dangerous), "a PUT is never harmless by its method"


async def answers(api: Api, headers: dict[str, str], own: dict[str, str]) -> dict[str, str]:
    """The code with which each guarded command is refused."""
    found: dict[str, str] = {}
    for route in sorted(routes(api.app), key=is_last):
        if route.startswith("GET ") or route in PROVED_OTHERWISE or "/console" in route:
            continue
        request = sent(route, own)
        answer = await api.client.request(**request | {"headers": request["headers"] | headers})
        found[route] = "" if answer.is_success else answer.json()["code"]
    return found


async def test_a_session_that_is_hours_old_gives_no_dangerous_command(api: Api):
    """But for exports, which no person may request."""
    own = await a_dangerous_world(api)
    stale = api.clock.now() - STEP_UP_LASTS
    _, token = await put_session(api, ACME, PersonRole.TENANT_ADMIN, authenticated_at=stale)
    found = await answers(api, bearer(token), own)
    refused = {route for route, code in found.items() if code == "step_up_required"}
    assert refused == set(declared(api.app)) - {"POST /v1/connections/export"}


@pytest.mark.parametrize("person", [True, False])
async def test_with_four_eyes_each_waits_for_a_second_admin(tmp_path: Path, person: bool):
    async with running_api(tmp_path) as api:
        own = await a_dangerous_world(api)
        api.parts.settings.four_eyes = True
        _, token = await put_session(api, ACME, PersonRole.TENANT_ADMIN)
        key = token if person else await api.app_with("first", Action.ADMIN, Action.EXPORT, tenant=ACME)
        found = await answers(api, bearer(key), own)
        waiting = {route for route, code in found.items() if code == "approval_required"}
        expected = {route for route, danger in declared(api.app).items() if danger.second}
        expected -= {"POST /v1/access-requests/{request_id}/approve"}  # an admin has asked
        assert waiting == expected - ({"POST /v1/connections/export"} if person else set())


async def test_of_permits_those_that_reach_tokens_set_up_or_end_what_people_connected(api: Api):
    """Given by a session that is hours old, each to an app of its own."""
    await api.app_with("boss", Action.ADMIN, tenant=ACME)
    stale = api.clock.now() - STEP_UP_LASTS
    _, token = await put_session(api, ACME, PersonRole.TENANT_ADMIN, authenticated_at=stale)
    refused: set[str] = set()
    for action in Action:
        permit = {"integration": "*", "actions": [action.value]}
        assert (await api.call("PUT", f"/v1/apps/of-{action.value}", token, json={})).status_code == 201
        given = await api.call("PUT", f"/v1/apps/of-{action.value}/permits/one", token, json=permit)
        if given.status_code != 201:
            assert given.json()["code"] == "step_up_required"
            refused.add(action.value)
    assert refused == {"token", "proxy", "export", "admin", "directory"}


async def test_a_put_that_changes_nothing_needs_neither(tmp_path: Path):
    async with running_api(tmp_path) as api:
        own = await a_dangerous_world(api)
        boss = bearer(await api.app_with("first", Action.ADMIN, tenant=ACME))
        puts = sorted(it for it in declared(api.app) if it.startswith("PUT "))
        assert len(puts) > 8
        for route in puts:
            request = sent(route, own)
            answer = await api.client.request(**request | {"headers": request["headers"] | boss})
            assert answer.is_success, (route, answer.text)
        api.parts.settings.four_eyes = True
        stale = api.clock.now() - STEP_UP_LASTS
        _, token = await put_session(api, ACME, PersonRole.TENANT_ADMIN, authenticated_at=stale)
        for route in puts:
            request = sent(route, own)
            answer = await api.client.request(**request | {"headers": request["headers"] | bearer(token)})
            assert answer.status_code == 200, (route, answer.text)
