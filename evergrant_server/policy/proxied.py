"""Requests to a provider's API, as permits for the action `proxy` judge them: by method, path and tool.

A pattern of a path has the path's segments. The segment `*` stands for any one, and `**` at the end for the
path before it and everything below. A pattern of a tool is its name; `*` at the end stands for what follows.
"""

from functools import lru_cache
from typing import NamedTuple

from evergrant_server.core.access import Effect, Permit

_ONE, _REST = "*", "**"
NO_TOOL = ""  # of a message of MCP that belongs to the protocol and calls no tool


class ProxiedRequest(NamedTuple):
    """Method and path of a request, the path as it follows the API's base URL, percent-decoded.

    `tool`: what a message to an MCP server calls, NO_TOOL, or None where that isn't known.
    """

    method: str
    path: str
    tool: str | None = None

    @classmethod
    def asked_about(cls, method: str | None, path: str | None, tool: str | None) -> "ProxiedRequest | None":
        """The request that a question names by a tool, or by method and path; None: by neither."""
        if tool is not None:
            return cls("POST", "/", tool)
        return None if method is None or path is None else cls(method, path)


def fits_method(permit: Permit, request: ProxiedRequest | None) -> bool:
    """Whether the permit is about requests of this method. One that isn't known: only a deny is."""
    if permit.methods is None:
        return True
    return permit.effect is Effect.DENY if request is None else request.method in permit.methods


def fits_path(permit: Permit, request: ProxiedRequest | None) -> bool:
    """Whether the permit is about this path. One that isn't known: only a deny is.

    A deny compares as the most lenient server would: without case, parameters (`;v=1`) and a final slash.
    """
    if permit.paths is None:
        return True
    denies = permit.effect is Effect.DENY
    if request is None:
        return denies
    given = segments(request.path, lenient=denies)
    return any(_matches(segments(pattern, lenient=denies), given) for pattern in permit.paths)


def fits_tool(permit: Permit, request: ProxiedRequest | None) -> bool:
    """Whether the permit is about this tool. One that isn't known: only a deny is. The protocol's own
    messages: only an allow is, since no client works without them.

    A deny compares without case.
    """
    if permit.tools is None:
        return True
    denies = permit.effect is Effect.DENY
    if request is None or request.tool is None:
        return denies
    if request.tool == NO_TOOL:
        return not denies
    tool = request.tool.casefold() if denies else request.tool
    return any(_names(it.casefold() if denies else it, tool) for it in permit.tools)


def _names(pattern: str, tool: str) -> bool:
    return tool.startswith(pattern[:-1]) if pattern.endswith(_ONE) else tool == pattern


@lru_cache(4096)
def segments(path: str, *, lenient: bool) -> tuple[str, ...]:
    """What is between the slashes of a path or pattern."""
    parts = path.removeprefix("/").split("/")
    if not lenient:
        return tuple(parts)
    return tuple(filter(None, (part.partition(";")[0].casefold() for part in parts)))


def path_pattern_problem(pattern: str) -> str | None:
    """Why a pattern can't be used, or None."""
    if not pattern.startswith("/"):
        return "a path begins with /"
    parts = segments(pattern, lenient=False)
    if any(_ONE in part and part not in (_ONE, _REST) for part in parts) or _REST in parts[:-1]:
        return "* stands for a whole segment, and ** for all that follow, at the end"
    if any(part in (".", "..") for part in parts) or "" in parts[:-1]:
        return "no segment is empty, . or .."
    if any(not char.isprintable() or char in "%?#\\" for char in pattern):
        return "write it decoded, without % ? # and \\"
    return None


def _matches(pattern: tuple[str, ...], given: tuple[str, ...]) -> bool:
    if pattern and pattern[-1] == _REST:
        pattern, given = pattern[:-1], given[: len(pattern) - 1]
    return len(pattern) == len(given) and all(
        wanted == part or (wanted == _ONE and part != "") for wanted, part in zip(pattern, given, strict=True)
    )
