"""Request id and trace id of a request, for logs and the audit log."""

import hashlib
import re
import secrets
from collections.abc import Iterable
from typing import NamedTuple

from starlette.requests import Request
from starlette.types import Scope

from evergrant_server.core.messages.base import RequestContext
from evergrant_server.telemetry.traces import current_ids

# W3C Trace Context section 3.2.2; version ff and an all-zero trace id are invalid
_TRACEPARENT = re.compile(
    r"^(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?$"
)
_REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{1,64}\Z")
_HEX_ID = re.compile(r"^[0-9a-f]{32}\Z")
_KEY = "evergrant_trace"


class Trace(NamedTuple):
    """`trace_id` is 32 hex digits; `request_id` is the caller's `X-Request-Id` when it is valid.

    `span_id` is "" unless tracing is on; then trace and span id are those of the request's span.
    """

    request_id: str
    trace_id: str
    span_id: str = ""

    def request_context(self, by: str) -> RequestContext:
        return RequestContext(by=by, trace_id=self.trace_id, span_id=self.span_id)


def begin_trace(scope: Scope) -> Trace:
    """Read or create the ids, and store them in the request's scope (W3C Trace Context)."""
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    ours = (b"traceparent", b"x-request-id")
    ids = {name: value.decode("latin-1") for name, value in headers if name in ours}
    named = ids.get(b"x-request-id", "")
    request_id = named if _REQUEST_ID.match(named) else secrets.token_hex(16)
    parent = _TRACEPARENT.match(ids.get(b"traceparent", "").strip())
    trace_id, span_id = current_ids()
    if not span_id:
        trace_id = parent.group(1) if parent else _as_trace_id(request_id)
    trace = Trace(request_id, trace_id, span_id)
    scope[_KEY] = trace
    return trace


def new_trace(scope: Scope) -> Trace:
    """As `begin_trace`, of a request that names no ids, outside of any span."""
    id = secrets.token_hex(16)
    trace = scope[_KEY] = Trace(id, id)
    return trace


def trace_of(request: Request) -> Trace:
    return request.scope[_KEY]


def _as_trace_id(request_id: str) -> str:
    """A UUID or 32 hex digits unchanged; any other request id hashed."""
    bare = request_id.replace("-", "").lower()
    return bare if _HEX_ID.match(bare) else hashlib.sha256(request_id.encode()).hexdigest()[:32]
