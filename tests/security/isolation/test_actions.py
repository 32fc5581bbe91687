"""What permits don't cover doesn't exist, and no request widens what they allow."""

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.ids import ConnectionId
from tests.fakes.api import TENANT, Api
from tests.security.isolation.roles import bearer
from tests.security.isolation.routes import guarded, requests_to
from tests.security.isolation.world import a_world


async def test_an_app_whose_permits_cover_other_things_sees_404_on_every_route_of_a_connection(api: Api):
    own = await a_world(api, TENANT)
    before = await api.row(TENANT, ConnectionId(own["connection_id"]))
    others = {
        "another integration": await api.app_with("b", *Action, integration="crm2"),
        "another subject": await api.app_with("c", *Action, subjects=("subject", "subject-of-acme1")),
    }
    about_it = [
        it for route in guarded(api.app) for it in requests_to(route) if "{connection_id}" in it.route
    ]
    assert len(about_it) > 10
    for why, key in others.items():
        for request in about_it:
            sent = request.sent(own)
            answer = await api.client.request(**sent | {"headers": sent["headers"] | bearer(key)})
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), (why, request)
        names = {name: own[name] for name in ("integration", "subject", "label")}
        assert (await api.lease(key, **names)).status_code == 404
        assert (await api.get("/v1/connections", key)).json()["items"] == []
    assert await api.row(TENANT, before.id) == before


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
    await api.made_by(connection, "asker")
    for scopes in (["api"], ["sudo"], ["read_user", "api"]):
        again = await api.post(f"/v1/connections/{connection.id}/reauthorize", key, {"scopes": scopes})
        new = {"integration": "crm", "subject": "user-2", "scopes": scopes}
        for answer in (again, await api.post("/v1/connections", key, new)):
            assert (answer.status_code, answer.json()["code"]) == (403, "scope_not_permitted")
    good = await api.post(f"/v1/connections/{connection.id}/reauthorize", key, {"scopes": ["read_user"]})
    assert good.status_code == 200
