"""A path and a method with two readings pass no permit by: at the proxy, at Envoy, and at `call_api`."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx2
import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.gateway.proxy.caller_body import KEPT
from providers.definition.schema_response import ApiRequest
from tests.fakes.api import Api
from tests.fakes.platform.gateway import Gateway, RawUpstream, running_gateway
from tests.security.gateway.test_mcp_server import mcp_client

TAKES = ApiRequest(encoded_slashes=True, method_overrides=("do",))
Ask = Callable[..., Awaitable[str]]  # method, path and headers; the refusal's code, or ""


@asynccontextmanager
async def at_proxy(gateway: Gateway, id: str, key: str, own: str) -> AsyncIterator[Ask]:
    async def ask(method: str, path: str, **headers: str) -> str:
        answer = await gateway.call(method, f"/v1/proxy/{id}{path}", key, headers=_named(headers))
        return answer.headers.get("evergrant-error", "")

    yield ask


def upstream_host(gateway: Gateway) -> str:
    base_url = gateway.parts.api.registry.get("gitlab").api_base_url
    assert base_url is not None
    return base_url.split("/")[2]


@asynccontextmanager
async def at_envoy(gateway: Gateway, id: str, key: str, own: str) -> AsyncIterator[Ask]:
    host = upstream_host(gateway)

    async def ask(method: str, path: str, **headers: str) -> str:
        given = {"evergrant-connection": id, "evergrant-envoy-key": own, "host": host, **_named(headers)}
        answer = await gateway.call(method, f"/ext_authz/api{path}", key, headers=given)
        return "" if answer.status_code == 200 else answer.json()["code"]

    yield ask


@asynccontextmanager
async def at_tool(gateway: Gateway, id: str, key: str, own: str) -> AsyncIterator[Ask]:
    async with mcp_client(gateway, key) as client:

        async def ask(method: str, path: str, **headers: str) -> str:
            given = {"connection_id": id, "method": method, "path": path, "headers": _named(headers)}
            answer = await client.call_tool("call_api", given)
            return answer.structured_content["code"] if answer.is_error else ""

        yield ask


def _named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


SURFACES = {"proxy": at_proxy, "envoy": at_envoy, "call_api": at_tool}


@asynccontextmanager
async def asking(
    api: Api, upstream: RawUpstream, surface: str, *permits: dict[str, Any]
) -> AsyncIterator[Ask]:
    """Asks as an app with these permits for `proxy`, and no other."""
    connection, key = await api.active_for("agent", Action.PROXY)
    own, admin = await api.app_with("envoy", Action.TOKEN), await api.app_with("admin", Action.ADMIN)
    for name, permit in zip(("only", "second"), permits, strict=False):
        body = {"integration": "*", "actions": ["proxy"], **permit}
        put = await api.call("PUT", f"/v1/apps/agent/permits/{name}", admin, json=body)
        assert put.is_success, put.text
    async with (
        running_gateway(api, upstream, api_request=TAKES) as gateway,
        SURFACES[surface](gateway, connection.id, key, own) as ask,
    ):
        yield ask


@pytest.mark.parametrize("surface", SURFACES)
async def test_a_hidden_slash_is_judged_in_both_readings(api: Api, upstream: RawUpstream, surface: str):
    """GitLab takes `acme%2Fissues%2Fprod` for a project; decoded it is an issue."""
    issues = {"methods": ["DELETE", "GET"], "paths": ["/projects/*/issues/*"]}
    async with asking(api, upstream, surface, issues) as ask:
        assert await ask("DELETE", "/projects/acme/issues/prod") == ""
        assert await ask("DELETE", "/projects/acme%2Fissues%2Fprod") == "not_permitted"
        assert await ask("DELETE", "/projects/acme%2fissues/prod") == "not_permitted"


@pytest.mark.parametrize("surface", SURFACES)
async def test_no_spelling_passes_a_deny_by(api: Api, upstream: RawUpstream, surface: str):
    deny = {"effect": "deny", "paths": ["/projects/*/variables"]}
    async with asking(api, upstream, surface, {}, deny) as ask:
        assert await ask("GET", "/projects/1/variable") == ""
        for path in (
            *("/projects/1/variables", "/projects/acme%2Fweb/variables", "/projects/1%2Fvariables"),
            *("/projects/1/variables.json", "/projects/1/Variables/", "/projects/1/variables."),
            *("/projects/1/variables%20", "/projects/1/variables;a=b", "/projects('1')/variables"),
        ):
            assert await ask("GET", path) == "not_permitted", path


@pytest.mark.parametrize("surface", SURFACES)
async def test_a_second_method_is_refused_where_a_permit_names_methods(
    api: Api, upstream: RawUpstream, surface: str
):
    form = "application/x-www-form-urlencoded"
    async with asking(api, upstream, surface, {"methods": ["POST", "GET"]}) as ask:
        assert await ask("POST", "/x?q=_method", content_type="application/json") == ""
        assert await ask("GET", "/x?method=list") == ""
        for path in ("/x?_method=DELETE", "/x?_HttpMethod=PATCH", "/x?method=delete", "/x?do=1"):
            assert await ask("GET", path) == "not_permitted", path
        for headers in ({"x_http_method_override": "DELETE"}, {"X_HTTP_Method": "DELETE"}, {"Do": "x"}):
            assert await ask("POST", "/x", content_type="application/json", **headers) == "not_permitted"
        if surface == "envoy":  # whose body isn't known
            assert await ask("POST", "/x", content_type=form) == "not_permitted"
    assert not [it for it in upstream.seen if it.values("x-http-method-override")]


async def test_a_deny_of_a_method_denies_what_may_have_it(api: Api, upstream: RawUpstream):
    deny = {"effect": "deny", "methods": ["DELETE"]}
    async with asking(api, upstream, "proxy", {}, deny) as ask:
        assert await ask("POST", "/x") == ""
        assert await ask("POST", "/x?_method=DELETE") == "not_permitted"


async def test_a_permit_without_methods_lets_an_api_take_its_own(api: Api, upstream: RawUpstream):
    async with asking(api, upstream, "proxy", {}) as ask:
        assert await ask("POST", "/x?_method=DELETE", Do="x") == ""
    assert upstream.seen[0].values("do") == ["x"]


async def test_a_form_is_read_for_a_method_and_one_that_is_too_long_is_not_guessed(
    api: Api, upstream: RawUpstream
):
    connection, key = await api.active_for("agent", Action.PROXY)
    admin = await api.app_with("admin", Action.ADMIN)
    body = {"integration": "*", "actions": ["proxy"], "methods": ["POST"]}
    assert (await api.call("PUT", "/v1/apps/agent/permits/only", admin, json=body)).is_success
    encoded = {"Content-Type": "application/x-www-form-urlencoded", "Content-Encoding": "gzip"}
    async with running_gateway(api, upstream) as gateway:
        path = f"/v1/proxy/{connection.id}/x"
        for more, code in (
            ({"data": {"a": "b"}}, None),
            ({"data": {"a": "b", "_method": "DELETE"}}, "not_permitted"),
            ({"files": {"_method": (None, "DELETE")}}, "not_permitted"),
            ({"files": {"f": ("f", b"x")}}, None),
            ({"content": b"x", "headers": encoded}, "not_permitted"),
            ({"json": {"_method": "DELETE", "long": "x" * KEPT}}, None),
        ):
            answer = await gateway.call("POST", path, key, **more)
            assert answer.headers.get("evergrant-error") == code, more
        unread = await gateway.call("POST", path, key, content=b"x", headers=encoded)
        assert "in a form that isn't read" in unread.json()["detail"]
        sent = len(upstream.seen)
        with suppress(httpx2.TransportError):  # the connection is closed before all of the body is read
            await gateway.call("POST", path, key, files={"f": ("f", b"x" * KEPT)})
        assert len(upstream.seen) == sent == 3


@pytest.mark.parametrize("surface", SURFACES)
async def test_the_names_of_the_query_are_recorded_without_values(
    api: Api, upstream: RawUpstream, surface: str
):
    async with asking(api, upstream, surface, {"methods": ["GET"]}) as ask:
        assert await ask("GET", "/x?page=secret&q=%73ecret") == ""
        assert await ask("GET", "/x?_method=secret2&q=secret") == ""
        assert await ask("GET", "/x?_method=put&q=secret") == "not_permitted"
    called = await api.records(AuditAction.PROXY_CALLED)
    refused = await api.records(AuditAction.LEASE_REFUSED)
    assert [it.detail["query"] for it in called] == [["page", "q"], ["_method", "q"]]
    assert [it.detail["query"] for it in refused] == [["_method", "q"]]
    assert "secret" not in f"{called}{refused}"
