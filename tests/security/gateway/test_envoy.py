"""External authorization for a real Envoy: which requests get a credential, and what arrives with them."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection
from evergrant_server.gateway.envoy.grpc_service import envoy_grpc
from tests.fakes.api import Api
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.platform.envoy import GithubApi, RunningEnvoy, github_api, running_envoy
from tests.fakes.platform.gateway import Gateway, RawUpstream, Seen

USER = "http://api.github.com/user"


@dataclass
class Setting:
    """An Envoy that may hold the tokens of `connection`, and an app that may call its API."""

    api: Api
    envoy: RunningEnvoy
    github: RawUpstream
    connection: Connection
    key: str
    own_key: str
    by_grpc: bool

    async def get(self, url: str = USER, **headers: str) -> Any:
        return await self.call("GET", url, headers=headers)

    async def call(self, method: str, url: str = USER, headers: Any = (), **more: Any) -> Any:
        given = {"Authorization": f"Bearer {self.key}", "Evergrant-Connection": self.connection.id}
        return await self.envoy.client.request(method, url, headers={**given, **dict(headers)}, **more)

    @property
    def arrived(self) -> list[Seen]:
        return self.github.seen


@pytest_asyncio.fixture
async def github(tmp_path: Path) -> AsyncIterator[GithubApi]:
    async with github_api(tmp_path) as running:
        yield running


@pytest_asyncio.fixture(params=["grpc", "http"])
async def setting(
    request: pytest.FixtureRequest, api: Api, gateway: Gateway, github: GithubApi, tmp_path: Path
) -> AsyncIterator[Setting]:
    connection = await api.active(await api.integration(provider="github"), token="gho-secret")
    key = await api.app_with("agent", Action.PROXY)
    own_key = await api.app_with("envoy", Action.TOKEN)
    async with envoy_grpc(gateway.parts, "127.0.0.1:0", drain_s=1) as port:
        port = port if request.param == "grpc" else gateway.port
        async with running_envoy(request.param, tmp_path, own_key, port, github) as envoy:
            yield Setting(api, envoy, github.upstream, connection, key, own_key, request.param == "grpc")


async def test_the_api_gets_the_credential_and_the_app_its_answer(setting: Setting):
    """Attack 2: neither the app's nor Envoy's own key is in what arrives."""
    answered = await setting.call("POST", f"{USER}?page=2", {"Cookie": "a=b", "X-Mine": "1"}, content=b"body")
    assert (answered.status_code, answered.json()) == (200, {"ok": True})
    (seen,) = setting.arrived
    assert (seen.method, seen.target, seen.body) == ("POST", "/user?page=2", b"body")
    assert seen.values("authorization") == ["Bearer gho-secret"]
    assert (seen.values("x-mine"), seen.values("cookie")) == (["1"], [])
    assert setting.key.encode() not in seen.head
    assert setting.own_key.encode() not in seen.head
    (record,) = await setting.api.records(AuditAction.PROXY_CALLED)
    assert record.object == setting.connection.id
    assert record.detail["request"] == "POST /user"
    assert record.detail["through"] == (await setting.api.app_named("envoy")).id


AMBIGUOUS = (
    *("/a/../user", "/..%2fuser", "/%252e%252e/user", "/a\\b", "//evil.example/user", "/user%0d%0aX:%20y"),
    *("/user#x", "http://evil.example/user"),
)
REFUSED = (
    "Authorization: Bearer theirs",
    "X_API_KEY: theirs",
    "Connection: Upgrade\r\nUpgrade: websocket",
    "Evergrant-Connection: x",
)
IGNORED = (
    *("X-Forwarded-Host: evil.example", "X-Original-URL: /admin", "X-HTTP-Method-Override: DELETE"),
    *("Proxy-Authorization: Basic eDp5", "Evergrant-Envoy-Key: x", "DPoP: x", "Cookie: a=b"),
    "X-Envoy-Auth-Headers-To-Remove: authorization",
)


async def test_what_arrives_is_what_was_judged(setting: Setting):
    """Attacks 13 to 17, and 21."""
    for target in AMBIGUOUS:
        assert await raw(setting, f"GET {target} HTTP/1.1") in ((400, []), (404, [])), target
    for method in ("TRACE", "CONNECT"):
        assert await raw(setting, f"{method} /user HTTP/1.1") in ((400, []), (404, []), (405, []))
    for header in REFUSED:
        status, arrived = await raw(setting, "GET /user HTTP/1.1", header)
        assert (400 <= status < 500, arrived) == (True, []), header
    for header in IGNORED:
        status, (seen,) = await raw(setting, "GET /user HTTP/1.1", header)
        name, _, value = header.lower().partition(": ")
        assert (status, seen.method, seen.values("host")) == (200, "GET", ["api.github.com"])
        assert seen.values("authorization") == ["Bearer gho-secret"], header
        assert value not in seen.values(name) or name.startswith("x-envoy-"), header
    # Envoy reads `Connection` itself: the app's credential is gone, or it is replaced
    status, arrived = await raw(setting, "GET /user HTTP/1.1", "Connection: authorization, x-mine")
    assert (status, arrived) == (401, [])


async def test_a_refusal_reaches_the_app_with_its_code_and_no_log_has_a_secret(
    setting: Setting, gateway: Gateway, caplog: pytest.LogCaptureFixture
):
    admin = await setting.api.app_with("admin", Action.ADMIN)

    async def refused(method: str = "GET", url: str = USER) -> tuple[int, str]:
        answered = await setting.call(method, url)
        assert answered.headers["evergrant-error"] == answered.json()["code"]
        return answered.status_code, answered.json()["code"]

    reads = {"integration": "*", "actions": ["proxy"], "methods": ["GET"], "paths": ["/user", "/repos/**"]}
    put = await setting.api.call("PUT", "/v1/apps/agent/permits/only", admin, json=reads)
    assert put.is_success, put.text
    assert (await setting.get()).status_code == 200
    assert await refused("DELETE") == (403, "not_permitted")
    assert await refused(url="http://api.github.com/gists") == (403, "not_permitted")
    put = await setting.api.call("PUT", "/v1/apps/agent", admin, json={"disabled": True})
    assert put.is_success, put.text
    assert await refused() == (403, "app_disabled")
    put = await setting.api.call("PUT", "/v1/apps/agent", admin, json={"disabled": False})
    await gateway.parts.api.ledger.stop()
    unrecorded = await setting.get()
    assert unrecorded.status_code == 503, "what can't be recorded doesn't pass"
    assert ("audit_unavailable" in unrecorded.text) is setting.by_grpc, (
        "over HTTP Envoy takes 5xx for a fault"
    )
    assert len(setting.arrived) == 1
    for log in (caplog.text, setting.envoy.log.read_text()):
        assert not any(it in log for it in ("gho-secret", setting.key, setting.own_key))


async def test_by_grpc_a_route_names_the_connection_and_a_token_that_is_due_outlasts_the_default_time_limit(
    api: Api, gateway: Gateway, github: GithubApi, tmp_path: Path
):
    integration = await api.integration(provider="github")
    ended = await api.active(integration, token="gho-old", lifetime=60)
    other = await api.connection(integration, subject="user-2")
    key, own_key = await api.app_with("agent", Action.PROXY), await api.app_with("envoy", Action.TOKEN)
    refreshed = asyncio.Event()
    api.refreshes_with("gho-new", after=refreshed)
    api.clock.advance(3600)

    def change(config: dict[str, Any]) -> None:
        manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        filters = "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3"
        check = {"context_extensions": {"evergrant-connection": ended.id}}
        (host,) = manager["route_config"]["virtual_hosts"]
        host["typed_per_filter_config"] = {
            "envoy.filters.http.ext_authz": {"@type": f"{filters}.ExtAuthzPerRoute", "check_settings": check}
        }
        del manager["http_filters"][0]["typed_config"]["grpc_service"]["timeout"]  # it is 200 ms

    async with (
        envoy_grpc(gateway.parts, "127.0.0.1:0", drain_s=1) as port,
        running_envoy("grpc", tmp_path, own_key, port, github, change) as envoy,
    ):

        async def call() -> int:
            headers = {"Authorization": f"Bearer {key}", "Evergrant-Connection": other.id}
            return (await envoy.client.get(USER, headers=headers)).status_code

        assert await call() == 503
        assert github.upstream.seen == [], "without an answer nothing passes"
        refreshed.set()
        await eventually(call, lambda status: status == 200)
    (seen,) = github.upstream.seen
    assert seen.values("authorization") == ["Bearer gho-new"]


async def raw(setting: Setting, line: str, *headers: str) -> tuple[int, list[Seen]]:
    """Send a request as these bytes; Envoy's status, and what arrived at the API."""
    before = len(setting.arrived)
    own = (f"Authorization: Bearer {setting.key}", f"Evergrant-Connection: {setting.connection.id}")
    lines = [line, "Host: api.github.com", *own, *headers, "Connection: close"]
    reader, writer = await asyncio.open_connection("127.0.0.1", setting.envoy.port)
    try:
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        async with asyncio.timeout(PATIENCE_S):
            answer = await reader.readuntil(b"\r\n\r\n")
    finally:
        writer.close()
    return int(answer.split(b" ")[1]), setting.arrived[before:]
