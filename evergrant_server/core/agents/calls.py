"""One call of an agent, as an approval is for it: whatever an API could read in it, and nothing else. Pure.

An API reads the account, the version or the arguments of a call in any header, and a tool's server in any
member of `params`. So all of them are part of the call, but for those that are listed here with the reason.
"""

from collections.abc import Iterable, Mapping
from typing import Any, cast

from evergrant_server.core.ids import AppId, ConnectionId
from evergrant_server.core.model import FrozenModel

Header = tuple[str, str]  # name and value

_META = "_meta"  # of an MCP request's params

# Header names in lower case, as they arrive: `user_agent` isn't neutral
NEUTRAL_HEADERS: Mapping[str, str] = {
    "user-agent": "names the program that sends",
    "accept-language": "chooses the language of the texts in the answer",
    "accept-encoding": "frames the answer; the gateway sends its own",
    "connection": "is for one hop (RFC 9110 section 7.6.1), and never goes on",
    "keep-alive": "as connection",
    "te": "as connection",
    "content-length": "repeats the length of the body, whose digest is part of the call",
    "transfer-encoding": "frames the body, whose digest is part of the call",
    "date": "is the moment of sending (RFC 9110 section 6.6.1), which an approval ahead can't know",
    "traceparent": "names a span of the caller's own traces (W3C Trace Context)",
    "tracestate": "as traceparent",
}

# of a `tools/call` alone, whose body is read as MCP has it; other messages are approved by their bytes
_OF_MCP: Mapping[str, str] = {
    "content-type": "a message is read as application/json in UTF-8 alone",
    "mcp-method": "repeats the body: the gateway refuses another one",
    "mcp-name": "repeats the body: the gateway refuses another one",
    "mcp-protocol-version": "the revision of MCP, in which the same params mean the same call",
    "mcp-session-id": "names a session of this caller with this server, and is another one each time",
}

# An `Accept` may choose a version, but not one of these: */* says no more than its absence (RFC 9110 section
# 12.5.1), and a server of MCP frames one answer as JSON or as events
_ANY_ANSWER = frozenset({"*/*"})
_MCP_ANSWERS = frozenset({"*/*", "application/json", "text/event-stream"})

NEUTRAL_META: Mapping[str, str] = {
    "progressToken": "names this request in the server's notifications of progress, and is new each time",
    "traceparent": "names a span of the caller's own traces",
    "tracestate": "as traceparent",
    "io.modelcontextprotocol/protocolVersion": "as Mcp-Protocol-Version",
    "io.modelcontextprotocol/clientInfo": "names the program that sends, as User-Agent does",
    "io.modelcontextprotocol/clientCapabilities": "what the program can show; older sessions begin with it",
    "io.modelcontextprotocol/logLevel": "how much the server logs to the program",
}


class AgentCall(FrozenModel):
    """One call of `agent`, an app, with the connection of `subject`: a request of HTTP, or a tool of an MCP
    server. `headers` and `params` are those that `covered_headers` and `covered_params` leave.
    """

    agent: AppId
    subject: str
    connection: ConnectionId
    url: str | None = None  # None: of a tool whose server isn't known
    headers: tuple[Header, ...] = ()
    method: str | None = None
    body_sha256: str | None = None  # hex; None: without a body
    params: dict[str, Any] | None = None

    @property
    def tool(self) -> str | None:
        return None if self.params is None else self.params["name"]

    @property
    def name(self) -> str:
        """What it is called where its content isn't shown."""
        return self.method or self.tool or ""

    def members(self) -> dict[str, Any]:
        """What its hash is over."""
        return {name: value for name, value in self.model_dump().items() if value is not None}

    def further_parts(self) -> tuple[str, ...]:
        """The names of its headers, and of its params beside name and arguments."""
        beside = [name for name in self.params or () if name not in ("name", "arguments")]
        return tuple(dict.fromkeys([*(name for name, _ in self.headers), *beside]))


def covered_headers(headers: Iterable[Header], *, of_tool: bool = False) -> tuple[Header, ...]:
    """The headers that are part of a call: names in lower case, sorted; those of one name in their order."""
    plain = [(name.lower(), value.strip(" \t")) for name, value in headers]
    neutral = {*NEUTRAL_HEADERS, *(_OF_MCP if of_tool else ())}
    ranges = ",".join(value for name, value in plain if name == "accept").split(",")
    accepted = {media_range.strip(" \t").lower() for media_range in ranges}
    if accepted <= (_MCP_ANSWERS if of_tool else _ANY_ANSWER):
        neutral.add("accept")
    covered = (header for header in plain if header[0] not in neutral)
    return tuple(sorted(covered, key=lambda header: header[0]))


def covered_params(sent: Mapping[str, Any]) -> dict[str, Any]:
    """All params of a `tools/call` but the neutral members of `_meta`. No `arguments`, null and {} are alike:
    a call without arguments."""
    params = dict(sent)
    meta = params.get(_META)
    if isinstance(meta, dict):
        members = cast("dict[str, Any]", meta)
        params[_META] = {name: member for name, member in members.items() if name not in NEUTRAL_META}
    may_be_empty = ("arguments", _META)
    return {
        name: value for name, value in params.items() if name not in may_be_empty or value not in (None, {})
    }
