"""The gateway's ASGI application: its routes, the errors that are its own, and its health."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from evergrant_server.access.context import readiness
from evergrant_server.access.limits import add_limit_headers
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.gateway.callers import challenge_of, resource_metadata
from evergrant_server.gateway.envoy.check import PREFIX as ENVOY_PREFIX
from evergrant_server.gateway.envoy.check import EnvoyHttpService
from evergrant_server.gateway.mcp.endpoint import MESSAGE, McpEndpoint, refusal
from evergrant_server.gateway.mcp.endpoint import PREFIX as MCP_PREFIX
from evergrant_server.gateway.parts import ERROR_HEADER, GatewayParts, note_refusal, unexpected
from evergrant_server.gateway.proxy.endpoint import PREFIX, ProxyEndpoint, ResponseBroken
from evergrant_server.gateway.tools.endpoint import PATH as TOOLS_PATH
from evergrant_server.gateway.tools.endpoint import ToolsEndpoint
from evergrant_server.problems import problem_response
from evergrant_server.telemetry import metric_export
from evergrant_server.telemetry.traces import begin_trace

_PROXY_ROUTE = SimpleNamespace(path="/v1/proxy/{connection}/{path}")  # for its span: the path isn't
_MCP_ROUTE = SimpleNamespace(path="/mcp/{connection}")
_ENVOY_ROUTE = SimpleNamespace(path="/ext_authz/{path}")
_TOOLS_ROUTE = SimpleNamespace(path="/mcp")
_SERVED = f"{_PROXY_ROUTE.path}, {_MCP_ROUTE.path} and {_TOOLS_ROUTE.path}"


class GatewayApp:
    """Dispatches by path. An answer of the gateway's own is a problem document (`refusals`)."""

    def __init__(self, parts: GatewayParts) -> None:
        self.parts = parts
        self._proxy = ProxyEndpoint(parts)
        self._mcp = McpEndpoint(parts)
        self._envoy = EnvoyHttpService(parts)
        self._tools = ToolsEndpoint(parts, self._proxy)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["GatewayApp"]:
        """The application while it serves: Evergrant's own MCP server answers inside of the block alone."""
        async with self._tools.running():
            yield self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trace = begin_trace(scope)
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                add_limit_headers(scope, MutableHeaders(raw=message["headers"]))
                message["headers"].append((b"evergrant-request-id", trace.request_id.encode()))
            await send(message)

        try:
            await self._serve(scope, receive, sending)
        except ResponseBroken:
            return  # the server closes the connection: the caller sees that the response has no end
        except Failure as failure:
            await self._refuse(failure, scope, receive, sending)
        except Exception:
            failure = unexpected(trace.request_id)
            if not started:
                await self._refuse(failure, scope, receive, sending)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["raw_path"]
        if path.startswith(PREFIX):
            scope["route"] = _PROXY_ROUTE
            await self._proxy(scope, receive, send)
            return
        if path.startswith(MCP_PREFIX):
            scope["route"] = _MCP_ROUTE
            await self._mcp(scope, receive, send)
            return
        if path.startswith(ENVOY_PREFIX):
            scope["route"] = _ENVOY_ROUTE
            await self._envoy(scope, receive, send)
            return
        if path == TOOLS_PATH:
            scope["route"] = _TOOLS_ROUTE
            await self._tools(scope, receive, send)
            return
        answer = await self._own_page(Request(scope), path)
        await answer(scope, receive, send)

    async def _own_page(self, request: Request, path: bytes) -> Response:
        if request.method not in ("GET", "HEAD"):
            raise Failure(ErrorCode.NOT_FOUND)
        if path == b"/livez":
            return JSONResponse({"status": "ok"})
        if path == b"/metrics":
            return Response(metric_export.exposition(), media_type=metric_export.CONTENT_TYPE)
        if path == b"/readyz":
            is_ready, checks = await readiness(self.parts.api)
            headers = {} if is_ready else {"Retry-After": "1"}
            return JSONResponse({"ready": is_ready, "checks": checks}, 200 if is_ready else 503, headers)
        settings = self.parts.api.settings
        document = resource_metadata(path, settings.gateway_public_url, settings.public_url)
        if document is not None:
            return JSONResponse(document, headers={"Access-Control-Allow-Origin": "*"})
        raise Failure(ErrorCode.NOT_FOUND, f"The gateway serves {_SERVED}.")

    async def _refuse(self, failure: Failure, scope: Scope, receive: Receive, send: Send) -> None:
        note_refusal(failure)
        settings = self.parts.api.settings
        if scope["raw_path"].startswith(MCP_PREFIX):
            response = refusal(failure, scope.get(MESSAGE), settings.public_url)
        else:
            response = problem_response(failure, settings.public_url)
        challenge = challenge_of(scope, settings.gateway_public_url)
        if challenge is not None and response.status_code == 401:
            response.headers["WWW-Authenticate"] = challenge
        response.headers[ERROR_HEADER] = failure.code.value
        response.headers["Connection"] = "close"  # the request's body may not have been read
        await response(scope, receive, send)
