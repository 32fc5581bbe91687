"""What a message of MCP calls: read for permits, approvals and the audit log, and never changed. Pure.

A message that two servers could read differently isn't guessed at. It passes only where no permit looks at
it.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

from evergrant_server.gateway.proxy.headers import RawHeaders, plain_name, values_of
from evergrant_server.policy import NO_TOOL
from evergrant_server.policy.proxied import TOOL_CALL, is_of_protocol

_NAMED_BY = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}  # what Mcp-Name repeats
_MEMBERS = frozenset({"jsonrpc", "id", "method", "params", "result", "error"})
_PARAMS = frozenset({"name", "arguments", "uri", "_meta"})
_JSON = re.compile(rb"application/json(?:\s*;\s*charset=\"?utf-8\"?)?\s*\Z", re.IGNORECASE)
_BASE64 = re.compile(r"=\?base64\?(.*)\?=\Z", re.DOTALL)
_PARAM = b"mcp-param-"
_VERSION = b"mcp-protocol-version"
_FIRST_MODERN = b"2026-07-28"  # revisions are dates


@dataclass(frozen=True)
class McpMessage:
    """`tool`: the one it calls, NO_TOOL, or None where that isn't known, as in a method of a server's own.
    `params`: all of those of a `tools/call`; None for another message, and where there is more beside them.
    `unclear` says why a message can't be judged, `differs` that its headers say otherwise than its body.
    `is_modern`: of the revision 2026-07-28, which has no sessions, or a later one."""

    method: str = ""
    tool: str | None = None
    params: dict[str, Any] | None = None
    id: str | int | float | None = None
    unclear: str | None = None
    differs: bool = False
    is_modern: bool = False


class _Unclear(Exception):
    pass


def read_message(http_method: str, headers: RawHeaders, content: bytes | None) -> McpMessage:
    """`content` None: it is longer than what is kept of a body."""
    modern = max(values_of(_VERSION, headers), default=b"") >= _FIRST_MODERN
    if content is None:
        return McpMessage(unclear="The message is too long to be judged.", is_modern=modern)
    if http_method != "POST":
        return McpMessage(tool=None if content else NO_TOOL, is_modern=modern)
    try:
        body = _object(headers, content)
    except (_Unclear, ValueError, RecursionError) as why:
        return McpMessage(unclear=f"The message can't be judged: {_why(why)}.", is_modern=modern)
    return replace(_read(headers, body), is_modern=modern)


def _read(headers: RawHeaders, body: dict[str, Any]) -> McpMessage:
    id = body.get("id")
    id = id if isinstance(id, str | int | float) and not isinstance(id, bool) else None
    try:
        method, params = _called(body)
        tool = _tool(method, params)
    except _Unclear as why:
        return McpMessage(id=id, unclear=f"The message can't be judged: {why}.")
    difference = _difference(headers, method, params)
    if difference is not None:
        return McpMessage(method, None, None, id, difference, differs=True)
    is_whole = method == "tools/call" and body.keys() <= _MEMBERS
    return McpMessage(method, tool, params if is_whole else None, id)


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, _Unclear) else "it isn't one JSON value in UTF-8"


def _object(headers: RawHeaders, content: bytes) -> dict[str, Any]:
    types = [value for name, value in headers if plain_name(name) == b"content-type"]
    if len(types) != 1 or not _JSON.match(types[0].strip()):
        raise _Unclear("it isn't application/json in UTF-8")
    if any(plain_name(name) == b"content-encoding" for name, _ in headers):
        raise _Unclear("it is encoded")
    members = json.loads(content.decode(), object_pairs_hook=_once, parse_constant=_no_number)
    if not isinstance(members, dict):
        raise _Unclear("it isn't one message (a batch isn't)")
    return cast("dict[str, Any]", members)


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise _Unclear("a member stands twice")
        members[name] = value
    return members


def _no_number(_: str) -> None:
    raise _Unclear("it has a number that JSON doesn't have")


def _called(body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Method and parameters; "" for a response. Some servers take `Method` for `method`."""
    _require_exact(body, _MEMBERS)
    method, params = body.get("method"), body.get("params", {})
    if method is None and ("result" in body or "error" in body):
        return "", {}
    if not isinstance(method, str) or not isinstance(params, dict):
        raise _Unclear("it has no method, or parameters that aren't an object")
    named = cast("dict[str, Any]", params)
    _require_exact(named, _PARAMS)
    return method, named


def _require_exact(members: Iterable[str], known: frozenset[str]) -> None:
    if any(name.casefold() in known and name not in known for name in members):
        raise _Unclear("a member is written otherwise than MCP writes it")


def _tool(method: str, params: dict[str, Any]) -> str | None:
    if is_of_protocol(method):
        return NO_TOOL
    if method != TOOL_CALL:
        return None
    name, arguments = params.get("name"), params.get("arguments")
    if not isinstance(name, str) or not name.strip() or not isinstance(arguments, dict | None):
        raise _Unclear("it calls a tool without a name, or with arguments that aren't an object")
    return name


def _difference(headers: RawHeaders, method: str, params: dict[str, Any]) -> str | None:
    """What the headers say otherwise than the body (revision 2026-07-28, transports), or None."""
    named = _NAMED_BY.get(method)
    wanted = {b"mcp-method": method, b"mcp-name": params.get(named) if named else None}
    names: set[bytes] = set()
    for raw_name, raw in headers:
        name = plain_name(raw_name)
        if name not in wanted and not name.startswith(_PARAM):
            continue
        if name in names:
            return f"{name.decode()} stands twice."
        names.add(name)
        value = _decoded(raw)
        if name in wanted and value != wanted[name]:
            return f"{name.decode()} is otherwise in the body."
        if name not in wanted and value not in {*_scalars(params.get("arguments"))}:
            return f"{name.decode()} is in no argument."
    return None


def _decoded(raw: bytes) -> str | None:
    """A header's text (`=?base64?...?=`); None: it can't be read."""
    text = raw.strip().decode("latin-1")
    encoded = _BASE64.match(text)
    if encoded is None:
        return text
    try:
        value = base64.b64decode(encoded[1], validate=True)
        return value.decode() if base64.b64encode(value).decode() == encoded[1] else None
    except (binascii.Error, ValueError):
        return None


def _scalars(value: object) -> Iterator[str]:
    """The texts of all strings, integers and booleans in the arguments."""
    if isinstance(value, dict):
        for member in cast("dict[str, object]", value).values():
            yield from _scalars(member)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, bool | int):
        yield str(value).lower()
