"""Evergrant as the MCP client that the judge tests: a platform as `dev` starts it does all that is OAuth.

For a scenario an admin puts an integration of the server's URL, an app calls the server with `auth()` of the
client library, and a subject opens each connect link that this raises. Nothing here parses a challenge or
metadata, sends a code or knows a token; no scenario is treated in a way of its own.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from evergrant import AsyncEvergrant, ReconnectNeeded
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from examples.demo.evergrant_api import ApiProblem
from examples.demo.subject import Subject
from tests.e2e.world import World
from tests.fakes.http_server import served
from tests.fakes.patience import PATIENCE_S

_MOST_TRIES = 5  # of one request
_MODERN = "2026-07-28"
_INFO = {"name": "app", "version": "1"}


class McpApp:
    """An app that speaks MCP to one server with the tokens of one connection."""

    def __init__(self, world: World, name: str, told: dict[str, Any]) -> None:
        self._world, self._name, self._url = world, name, told["url"]
        self._modern = told["version"] >= _MODERN
        known = {"client_id", "client_secret"} & told["context"].keys()
        client = {field: told["context"][field] for field in known}
        self._integration = {"provider": "mcp", "params": {"url": self._url}, **client}
        self._enterprise: dict[str, str] = told["context"] if "idp_id_token" in told["context"] else {}
        self._number = 0
        self._session: dict[str, str] = {}
        self._connected = False

    async def run(self) -> None:
        """Raises ApiProblem where Evergrant refuses the server, ReconnectNeeded after too many tries."""
        if self._enterprise:
            await self._log_in()
        await self._world.integration(self._name, self._integration)
        if self._enterprise:
            await self._world.active(await self._world.begin(self._name))
        origin = self._url.rpartition("/")[0]
        async with (
            AsyncEvergrant(self._world.platform.api, self._world.key) as evergrant,
            httpx2.AsyncClient(
                auth=evergrant.auth(self._name, "sam", origins=origin), trust_env=False, timeout=PATIENCE_S
            ) as http,
        ):
            if not self._modern:
                info = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": _INFO}
                await self._call(http, "initialize", info)
                await self._call(http, "notifications/initialized", None)
            await self._call(http, "tools/list", {})
            await self._call(http, "tools/call", {"name": "test-tool", "arguments": {}})

    async def _call(self, http: httpx2.AsyncClient, method: str, params: dict[str, Any] | None) -> None:
        """One request, after each consent again."""
        for _ in range(_MOST_TRIES):
            try:
                answer = await http.post(self._url, **self._message(method, params))
            except ReconnectNeeded as needed:
                if needed.code == "connection_revoked":
                    continue  # the client had a lease of it in its cache
                if self._connected and needed.code != "scope_not_granted":
                    await self._begin_anew()  # the server refuses a token that it took before
                else:
                    await self._consent(needed.connection_id, needed.connect_url)
                continue
            if answer.status_code == 401:
                await self._begin_anew()
                continue
            if "mcp-session-id" in answer.headers:
                self._session = {"Mcp-Session-Id": answer.headers["mcp-session-id"]}
            return
        raise ReconnectNeeded(f"{_MOST_TRIES} tries weren't enough")

    async def _log_in(self) -> None:
        """The subject has logged in at the judge's identity provider, which has no page for it: an admin
        imports what that gave."""
        staff, told = f"{self._name}-staff", self._enterprise
        there = {"provider": "generic", "issuer": told["idp_issuer"], "client_auth": "none"}
        await self._world.integration(staff, {**there, "client_id": told["idp_client_id"]})
        tokens = {"access_token": "unused", "id_token": told["idp_id_token"], "expires_in": 3600}
        item = {"integration": staff, "subject": "sam", "scopes": ["openid"], **tokens}
        made = await self._world.admin.post("/v1/connections/import", {"items": [item], "verify": False})
        await self._world.admin.state(made["items"][0]["connection_id"], "active", PATIENCE_S)
        self._integration["identity_provider"] = staff

    async def _consent(self, connection_id: str | None, connect_url: str | None) -> None:
        """A fresh browser opens the link. Raises HTTPStatusError for the page of a refused callback."""
        async with Subject("sam", "a-password") as subject:
            landing = await subject.consent(connect_url or "")
        assert landing.response is not None
        landing.response.raise_for_status()
        await self._world.active({"id": connection_id})
        self._connected = True

    async def _begin_anew(self) -> None:
        """The server takes the connection's tokens no more: what an admin does is to revoke it, and to put
        the integration again."""
        await self._world.revoked(await self._world.begin(self._name))
        await self._world.integration(self._name, self._integration)
        begun = await self._world.begin(self._name)
        await self._consent(begun["id"], begun["connect_url"])

    def _message(self, method: str, params: dict[str, Any] | None) -> dict[str, Any]:
        """The body and headers of either era."""
        self._number += 1
        body: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
        headers = {"Accept": "application/json, text/event-stream", **self._session}
        if params is not None:
            body |= {"id": self._number, "params": params}
        if self._modern and params is not None:
            of_request = {"protocolVersion": _MODERN, "clientInfo": _INFO, "clientCapabilities": {}}
            meta = {f"io.modelcontextprotocol/{name}": value for name, value in of_request.items()}
            body["params"] = {**params, "_meta": meta}
            headers |= {"MCP-Protocol-Version": _MODERN, "Mcp-Method": method}
            headers |= {"Mcp-Name": params["name"]} if "name" in params else {}
        elif method != "initialize":
            headers["MCP-Protocol-Version"] = "2025-11-25"
        return {"json": body, "headers": headers}


@asynccontextmanager
async def driver(world: World) -> AsyncIterator[str]:
    """Serves `relay`; returns its port."""
    count = 0

    async def scenario(request: Request) -> JSONResponse:
        nonlocal count
        count += 1
        told = json.loads(await request.body())
        try:
            await McpApp(world, f"mcp-{count}", told).run()
        except (ApiProblem, ReconnectNeeded, AssertionError, httpx2.HTTPError) as why:
            return JSONResponse({"ended": False, "said": f"{told['scenario']}: {type(why).__name__}: {why}"})
        return JSONResponse({"ended": True, "said": told["scenario"]})

    async with served(Starlette(routes=[Route("/", scenario, methods=["POST"])])) as url:
        yield url.rpartition(":")[2]
