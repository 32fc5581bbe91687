"""What Envoy is told, asked as it asks over HTTP: who may ask, for which host and path, what is refused."""

from typing import Any

import httpx2
import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.ids import ConnectionId
from tests.fakes.api import OTHER, Api
from tests.fakes.platform.gateway import Gateway, RawUpstream, running_gateway
from tests.fakes.platform.gateway_clients import authorized_client


class Asking:
    """Envoy's questions to a gateway, for an app with `proxy` and a connection of github."""

    def __init__(self, gateway: Gateway, **headers: str) -> None:
        self._gateway = gateway
        self.headers = headers

    async def __call__(self, path: str = "/user", method: str = "GET", **changed: str) -> httpx2.Response:
        given = {name.replace("_", "-"): value for name, value in {**self.headers, **changed}.items()}
        request = self._gateway.client.build_request(method, f"/ext_authz{path}", headers=given)
        return await self._gateway.client.send(request)

    async def code(self, *given: Any, **changed: str) -> str:
        """The refusal's code. It has no token."""
        answer = await self(*given, **changed)
        assert "gho-secret" not in f"{answer.headers}{answer.text}"
        return answer.json()["code"]


async def asking(
    api: Api, gateway: Gateway, provider: str = "github", host: str = "api.github.com"
) -> Asking:
    connection = await api.active(await api.integration(provider=provider), token="gho-secret")
    key, own = await api.app_with("agent", Action.PROXY), await api.app_with("envoy", Action.TOKEN)
    headers = {"evergrant_connection": connection.id, "evergrant_envoy_key": own, "host": host}
    return Asking(gateway, authorization=f"Bearer {key}", **headers)


async def test_no_app_gets_a_token_by_asking_in_envoys_place(api: Api, gateway: Gateway):
    ask = await asking(api, gateway)
    allowed = await ask()
    assert (allowed.status_code, allowed.headers["authorization"]) == (200, "Bearer gho-secret")
    assert allowed.headers["cache-control"] == "no-store"
    agent = ask.headers["authorization"].removeprefix("Bearer ")
    elsewhere = await api.app_with("envoy", Action.TOKEN, tenant=OTHER)
    for key in ("", "evg_key_x", agent):
        assert await ask.code(evergrant_envoy_key=key) == "not_permitted"
    assert await ask.code(evergrant_envoy_key=elsewhere) == "unauthenticated"
    holder = ask.headers["evergrant_envoy_key"]
    assert await ask.code(authorization=f"Bearer {holder}") == "not_permitted", "token isn't proxy"
    assert await ask.code(authorization="Basic eDp5") == "unauthenticated"


async def test_attack_1_a_token_for_a_resource_of_the_gateways_opens_nothing_here(api: Api, gateway: Gateway):
    ask = await asking(api, gateway)
    client = await authorized_client(api, "agent")
    for connection in (ConnectionId(ask.headers["evergrant_connection"]), None):
        token = (await client.tokens("user-1", connection))["access_token"]
        assert await ask.code(authorization=f"Bearer {token}") == "unauthenticated"
        assert await ask.code(evergrant_envoy_key=token) == "not_permitted"
    assert await api.records(AuditAction.PROXY_CALLED) == []


async def test_envoy_holds_only_what_its_own_permit_covers_and_a_stop_counts_at_once(
    api: Api, gateway: Gateway
):
    ask, admin = await asking(api, gateway), await api.app_with("admin", Action.ADMIN)

    async def put(where: str, **body: Any) -> None:
        changed = await api.call("PUT", f"/v1/apps/{where}", admin, json=body)
        assert changed.is_success, changed.text

    assert (await ask()).status_code == 200
    permit: dict[str, Any] = {"integration": "crm", "actions": ["token"]}
    await put("envoy/permits/only", **permit, scope_ceiling=["other"])
    assert await ask.code() == "not_permitted"
    await put("envoy/permits/only", **permit)
    assert (await ask()).status_code == 200
    await put("envoy", disabled=True)
    assert await ask.code() == "not_permitted"
    await put("envoy", disabled=False)
    assert (await ask()).status_code == 200
    await put("agent", disabled=True)
    assert await ask.code() == "app_disabled"
    refused = await api.records(AuditAction.LEASE_REFUSED)
    assert [it.detail["code"] for it in refused] == ["not_permitted"], "the app's; Envoy's own are no lease's"


@pytest.mark.parametrize(
    "host",
    ["evil.example", "api.github.com.evil.example", "api.github.com:444", "api.github.com.", "github.com"],
)
async def test_a_token_is_for_the_host_of_the_catalogue_alone(api: Api, gateway: Gateway, host: str):
    """Attack 13."""
    ask = await asking(api, gateway)
    refused = await ask(host=host, x_forwarded_host="api.github.com")
    assert (refused.status_code, refused.json()["field"]) == (400, "host")
    for same in ("API.github.com", "api.github.com:443"):
        assert (await ask(host=same)).status_code == 200
    assert len(await api.records(AuditAction.PROXY_CALLED)) == 2


async def test_permits_judge_the_path_behind_the_base_url(api: Api, upstream: RawUpstream):
    async with running_gateway(api, upstream, api_base_url="https://git.example/api/v4") as gateway:
        ask, admin = (
            await asking(api, gateway, "gitlab", "git.example"),
            await api.app_with("admin", Action.ADMIN),
        )
        paths = {"integration": "*", "actions": ["proxy"], "paths": ["/projects/**"]}
        assert (await api.call("PUT", "/v1/apps/agent/permits/only", admin, json=paths)).is_success
        assert (await ask("/api/v4/projects/1?x=/user")).status_code == 200
        assert await ask.code("/api/v4/user") == "not_permitted"
        for outside in (
            "/projects/1",
            "/api/v4x/projects/1",
            "/api/v4//projects/1",
            "/oauth/projects/../token",
        ):
            answer = await ask(outside)
            assert (answer.status_code, "authorization" in answer.headers) in ((400, False), (403, False))


async def test_what_envoy_cannot_do_is_refused_by_name(api: Api, gateway: Gateway):
    ask, admin = await asking(api, gateway), await api.app_with("admin", Action.ADMIN)
    for wrong in ("", "con_x", "con_" + "0" * 22):
        assert await ask.code(evergrant_connection=wrong) in ("invalid_request", "not_found")
    bound = await api.active(await api.integration("bound", provider="github"), token_type="DPoP")
    assert await ask.code(evergrant_connection=bound.id) == "signature_needed"
    nowhere = await api.active(await api.integration("nowhere", provider="generic"))
    assert await ask.code(evergrant_connection=nowhere.id) == "api_unknown"
    demands = {"integration": "*", "actions": ["proxy"], "call_approval": True}
    assert (await api.call("PUT", "/v1/apps/agent/permits/only", admin, json=demands)).is_success
    refused = await ask(method="POST")
    assert (refused.status_code, refused.json()["code"]) == (403, "call_approval_required")
    assert "/v1/proxy/" in refused.json()["repair"]
