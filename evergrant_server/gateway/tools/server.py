"""The MCP server that the SDK runs: lists the tools, and calls them. Every failure is one of the table."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    InputRequiredResult,
    ListToolsResult,
    PaginatedRequestParams,
)
from pydantic import ValidationError
from starlette.requests import Request

from evergrant_server import __version__
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.gateway.parts import GatewayParts
from evergrant_server.gateway.proxy.endpoint import ProxyEndpoint
from evergrant_server.gateway.tools.catalogue import INSTRUCTIONS, TOOLS
from evergrant_server.gateway.tools.elicitation import STATE_LASTS_S, Completions
from evergrant_server.gateway.tools.tool_call import ToolCall, caller_of, failed
from evergrant_server.problems import field_errors, invalid_request
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.alarms import report_broken_authority
from evergrant_server.telemetry.logs import LogEvent, log_event

log = logging.getLogger("evergrant.gateway")

Context = ServerRequestContext[Any, Request]


class EvergrantTools:
    """The server's handlers. `server` is what the SDK's transport serves."""

    def __init__(self, parts: GatewayParts, proxy: ProxyEndpoint) -> None:
        self._parts, self._proxy = parts, proxy
        self._completions = Completions()
        self.server: Server[Any] = Server(
            "evergrant",
            title="Evergrant",
            version=__version__,
            instructions=INSTRUCTIONS,
            on_list_tools=self._list,
            on_call_tool=self._call,
            get_tool_input_schema=lambda name: None,
        )
        # one key for every process: the second round may come to another one
        security = RequestStateSecurity(
            keys=[parts.api.ring.derive("mcp request state")],
            ttl=STATE_LASTS_S,
            bind_principal=_principal,
            audience=parts.api.settings.gateway_public_url,
        )
        self.server.middleware.append(RequestStateBoundary(security, default_audience=None))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await self._completions.stop()

    async def _list(self, context: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=[tool.shown for tool in TOOLS.values()])

    async def _call(
        self, context: Context, params: CallToolRequestParams
    ) -> CallToolResult | InputRequiredResult:
        if params.name not in TOOLS:
            raise MCPError(INVALID_PARAMS, "There is no tool of this name: tools/list has them.")
        try:
            answer = await self._run(context, params)
        except MCPError:
            metrics.count_tool(params.name, "asked")
            raise
        except Failure as failure:
            answer = self._failed(failure)
        except Exception:
            log.exception("%s: tool %s", LogEvent.UNEXPECTED.value, params.name)
            answer = self._failed(Failure(ErrorCode.INTERNAL))
        metrics.count_tool(params.name, _outcome(answer))
        return answer

    async def _run(
        self, context: Context, params: CallToolRequestParams
    ) -> CallToolResult | InputRequiredResult:
        tool = TOOLS[params.name]
        try:
            arguments = tool.arguments.model_validate(params.arguments or {})
        except ValidationError as error:
            first = field_errors(error, tool.arguments.model_fields)[0]
            raise invalid_request(first["field"], f"{first['field']}: {first['problem']}") from None
        return await tool.run(
            ToolCall(self._parts, self._proxy, self._completions, context, params), arguments
        )

    def _failed(self, failure: Failure) -> CallToolResult:
        report_broken_authority(failure)
        if failure.rule.status >= 500:
            log_event(log, logging.WARNING, LogEvent.REQUEST_FAILED, failure.detail, code=failure.code)
        return failed(failure, self._parts.api.settings.public_url)


def _principal(context: ServerRequestContext[Any, Any]) -> str:
    assert context.request is not None
    return caller_of(context.request).principal


def _outcome(answer: CallToolResult | InputRequiredResult) -> str:
    if isinstance(answer, InputRequiredResult):
        return "asked"
    return "failed" if answer.is_error else "answered"
