"""Where a proxied request goes: the API's base URL and the caller's path, in one reading only. Pure.

The path is sent as the caller wrote it, and permits judge each of its readings. What has no reading that is
safe is refused: dot segments at any depth, escapes of escapes, backslashes, and hidden slashes unless the API
wants them.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from unicodedata import normalize
from urllib.parse import unquote_to_bytes, urlsplit

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.gateway.proxy.headers import RawHeaders
from evergrant_server.policy import ProxiedRequest, method_overrides
from providers.definition.templates import server_address

MOST_TARGET = 16 * 1024
_MOST_LINE = 500  # characters of a request line in the audit log

_METHOD = re.compile(r"[A-Z]{1,20}\Z")
_NEVER = frozenset({"CONNECT", "TRACE"})  # RFC 9110 sections 9.3.6 and 9.3.8
_PATH = re.compile(rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})*\Z")  # RFC 3986 section 3.3
_QUERY = re.compile(rb"[!$-;=?-Z_a-z~\[\]{|}^`\\\"]*\Z")  # visible, without # < >
_ESCAPE = re.compile(rb"%[0-9A-Fa-f]{2}")


@dataclass(frozen=True)
class CallerPath:
    """What follows the connection in the caller's URL, as sent."""

    method: str
    raw: bytes  # without its leading slash
    query: bytes
    hides_slash: bool  # a segment has %2F

    def judged(self, headers: RawHeaders, body: bytes | None, own_overrides: Iterable[str]) -> ProxiedRequest:
        """The request as permits judge it. `body` None: it isn't known whole. `own_overrides` are the names
        by which the provider's API takes another method."""
        overrides = method_overrides(self.query, headers, body, own_overrides)
        return ProxiedRequest(self.method, f"/{self.raw.decode()}", None, overrides)

    @property
    def line(self) -> str:
        """Method and path for the audit log, without the query, which may hold secrets."""
        return f"{self.method} /{self.raw.decode()}"[:_MOST_LINE]


@dataclass(frozen=True)
class ApiTarget:
    """Origin and request target (RFC 9112 section 3.2.1)."""

    origin: str
    target: bytes

    @property
    def url(self) -> str:
        return self.origin + self.target.decode()


def read_caller_path(method: str, raw: bytes, query: bytes) -> CallerPath:
    """Raises Failure METHOD_NOT_ALLOWED, and INVALID_REQUEST for a path with more than one reading."""
    if not _METHOD.match(method) or method in _NEVER:
        raise Failure(ErrorCode.METHOD_NOT_ALLOWED)
    if len(raw) + len(query) > MOST_TARGET:
        raise _refused(f"longer than {MOST_TARGET} bytes")
    if not _PATH.match(raw) or not _QUERY.match(query):
        raise _refused("has characters that a URL can't have")
    parts = raw.split(b"/")
    if b"" in parts[:-1]:
        raise _refused("has an empty segment")
    decoded = [_decoded(part) for part in parts]
    return CallerPath(method, raw, query, hides_slash=any("/" in part for part in decoded))


def _decoded(segment: bytes) -> str:
    once = unquote_to_bytes(segment)
    if _ESCAPE.search(once):
        raise _refused("has an escape inside an escape")
    try:
        text = once.decode()
    except UnicodeDecodeError:
        raise _refused("is not UTF-8") from None
    if any(char < " " or char in "\x7f\\" for char in text):
        raise _refused("has a control character or a backslash")
    if any(part.partition(";")[0].strip() in (".", "..") for part in normalize("NFKC", text).split("/")):
        raise _refused("has a dot segment")
    return text


def target_of_call(base_url: str, path: CallerPath, *, hidden_slashes: bool) -> ApiTarget:
    """The caller's path behind the base URL, whose origin it can't leave.

    Raises Failure INVALID_REQUEST for %2F unless `hidden_slashes`.
    """
    if path.hides_slash and not hidden_slashes:
        raise _refused("has an escaped slash")
    base = urlsplit(base_url)
    origin = f"{base.scheme}://{base.netloc}"
    where = base.path.rstrip("/").encode() + b"/" + path.raw
    whole = urlsplit(f"{origin}{where.decode()}")
    if (whole.scheme, whole.netloc, whole.path) != (base.scheme, base.netloc, where.decode()):
        raise _refused("leaves the API")
    return ApiTarget(origin, where + (b"?" + path.query if path.query else b""))


def target_of_server(url: str, query: bytes) -> ApiTarget:
    """A server that has one URL, and the caller's query. Raises Failure INVALID_REQUEST."""
    if len(query) > MOST_TARGET or not _QUERY.match(query):
        raise Failure(ErrorCode.INVALID_REQUEST, "The query has characters that a URL can't have.")
    server = urlsplit(server_address(url))
    path = server.path.encode()
    return ApiTarget(f"{server.scheme}://{server.netloc}", path + (b"?" + query if query else b""))


def _refused(why: str) -> Failure:
    return Failure(ErrorCode.INVALID_REQUEST, f"The path {why}.", field="path")
