"""Requests to a provider's API, as permits for the action `proxy` judge them: by method, path and tool.

`policy.paths` compares paths. A pattern of a tool is its name; `*` at the end stands for what follows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from unicodedata import normalize

from evergrant_server.core.access import Effect, Permit
from evergrant_server.policy.overrides import method_overrides
from evergrant_server.policy.paths import PathReadings

_REST = "*"
NO_TOOL = ""  # of a message of MCP that belongs to the protocol and calls no tool
MCP_PATH, TOOL_CALL = "/mcp", "tools/call"
_OF_PROTOCOL = frozenset(
    {
        *("initialize", "ping", "server/discover", "tools/list", "logging/setLevel", "subscriptions/listen"),
        *("tasks/get", "tasks/result", "tasks/update", "tasks/cancel"),  # of calls that were judged
    }
)
_NOTIFICATION = "notifications/"


def is_of_protocol(message: str) -> bool:
    """True for the methods of MCP that call nothing; "" is a response."""
    return message in ("", *_OF_PROTOCOL) or message.startswith(_NOTIFICATION)


@dataclass(frozen=True)
class ProxiedRequest:
    """Method and path of a request, the path as it follows the API's base URL, percent-encoded as it is sent.

    `tool`: what a message to an MCP server calls, NO_TOOL, or None where that isn't known. `overrides` are
    the places that may name another method to the server (`policy.overrides`): with one, it isn't known.
    """

    method: str
    path: str
    tool: str | None = None
    overrides: tuple[str, ...] = ()

    @classmethod
    def asked_about(
        cls, method: str | None, path: str | None, tool: str | None, own_names: Iterable[str] = ()
    ) -> "ProxiedRequest | None":
        """The request that a question names by a tool, or by method and path, which may have a query; None:
        by neither. `own_names` are those by which the provider's API takes another method."""
        if tool is not None:
            return cls("POST", "/", tool)
        if method is None or path is None:
            return None
        path, _, query = path.partition("?")
        return cls(method, path, None, method_overrides(query.encode(), own_names=own_names))

    @classmethod
    def of_line(cls, line: str) -> "ProxiedRequest":
        """The request that an audit record names: `GET /user/repos`, or `POST /mcp tools/call search`."""
        method, _, rest = line.partition(" ")
        path, _, message = rest.partition(" ")
        if path != MCP_PATH:
            return cls(method, path)
        message, _, tool = message.partition(" ")
        return cls(method, "/", tool or (NO_TOOL if is_of_protocol(message) else None))

    @cached_property
    def readings(self) -> PathReadings:
        return PathReadings(self.path)


def fits_method(permit: Permit, request: ProxiedRequest | None) -> bool:
    """Whether the permit is about requests of this method. One that isn't known: only a deny is."""
    if permit.methods is None:
        return True
    if request is None or request.overrides:
        return permit.effect is Effect.DENY
    return request.method in permit.methods


def fits_path(permit: Permit, request: ProxiedRequest | None) -> bool:
    """Whether the permit is about this path. One that isn't known: only a deny is.

    An allow fits it in each of its readings, a deny in one of a lenient server.
    """
    if permit.paths is None:
        return True
    denies = permit.effect is Effect.DENY
    if request is None:
        return denies
    readings = request.readings
    return readings.fits_deny(permit.paths) if denies else readings.fits_allow(permit.paths)


def fits_tool(permit: Permit, request: ProxiedRequest | None) -> bool:
    """Whether the permit is about this tool. One that isn't known: only a deny is. The protocol's own
    messages: only an allow is, since no client works without them.

    A deny compares without case, blanks around a name and compatibility forms (NFKC).
    """
    if permit.tools is None:
        return True
    denies = permit.effect is Effect.DENY
    if request is None or request.tool is None:
        return denies
    if request.tool == NO_TOOL:
        return not denies
    if denies:
        return any(_names(_plain(pattern), _plain(request.tool)) for pattern in permit.tools)
    return any(_names(pattern, request.tool) for pattern in permit.tools)


def _names(pattern: str, tool: str) -> bool:
    return tool.startswith(pattern[:-1]) if pattern.endswith(_REST) else tool == pattern


def _plain(tool: str) -> str:
    return normalize("NFKC", normalize("NFKC", tool).casefold()).strip()
