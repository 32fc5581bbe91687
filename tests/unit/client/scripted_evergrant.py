"""A scripted Evergrant on loopback: answers a route's responses in order, and records the requests."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime
from enum import EnumType
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any, Self, get_origin, get_type_hints
from urllib.parse import parse_qsl, urlsplit

from evergrant import AuditRecord, Connection, Lease
from evergrant.api.models import Integration, ProviderVersion, Webhook, WebhookDelivery

from tests.fakes.patience import PATIENCE_S

TOKEN = "canary/tok+en.0123456789abcdefXYZ"
LINK = "https://evergrant.example/connect/canary-link-0123456789"
SECRET = "canary-secret-0123456789"
INTEGRATION = {"provider": "gitlab", "client_id": "c-1", "client_secret": SECRET}
VERSION = "/v1/providers/acme-crm"
HOOK = "/v1/webhooks/hooks"
URL = "https://hooks.example.com/in"


@dataclass(frozen=True)
class ScriptedResponse:
    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    drop: bool = False  # close the connection without a response
    held: Event | None = None  # answer when it is set


@dataclass(frozen=True)
class RecordedRequest:
    """One request; `at` is when it arrived, in seconds of the monotonic clock."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    raw: bytes
    at: float = field(default_factory=time.monotonic)

    @property
    def body(self) -> Any:
        return json.loads(self.raw) if self.raw else None


def problem(
    status: int, kind: str, code: str, headers: Mapping[str, str] | None = None, **more: Any
) -> ScriptedResponse:
    body = {"type": f"/docs/errors#{code}", "title": code, "status": status, "code": code, "kind": kind}
    body |= {"detail": "the reason", **more}
    return ScriptedResponse(status, body, headers or {}, "application/problem+json")


def page(*items: dict[str, Any], next_cursor: str | None = None) -> ScriptedResponse:
    return ScriptedResponse(200, {"items": list(items), "next_cursor": next_cursor})


def lease(**changes: Any) -> ScriptedResponse:
    body = {
        "connection_id": "con_1",
        "access_token": TOKEN,
        "token_type": "Bearer",
        "expires_at": "2030-01-02T03:04:05Z",
        "scopes": ["read"],
        "generation": 7,
    }
    return ScriptedResponse(200, body | changes)


def leased(expires_at: datetime | None) -> Lease:
    facts: dict[str, Any] = {"scopes": (), "generation": 1, "connection_id": "con_1"}
    return Lease(TOKEN, token_type="Bearer", expires_at=expires_at, **facts)


def consent_required() -> ScriptedResponse:
    return problem(
        409, "ReconnectNeeded", "consent_required", connect_url=LINK, connection_id="con_1", expires_at=None
    )


_EXAMPLES = {
    str: "text",
    int: 1,
    float: 0,
    bool: False,
    datetime: "2030-01-01T00:00:00Z",
    tuple[str, ...]: [],
    Mapping[str, Any]: {},
}


def example(model: type[Any], **members: Any) -> dict[str, Any]:
    """The JSON of a client's model: an example for each required member, null for an optional one."""
    hints = get_type_hints(model)
    required = [each.name for each in fields(model) if each.default is each.default_factory]
    return {name: example_value(hints[name]) for name in required} | members


def example_value(hint: Any) -> Any:
    if is_dataclass(hint):
        return example(hint)
    if isinstance(hint, EnumType):
        return next(iter(hint)).value
    return [] if get_origin(hint) is tuple else _EXAMPLES.get(hint)


def connection(**changes: Any) -> dict[str, Any]:
    names = {"id": "con_1", "integration": "crm", "subject": "alice", "state": "active"}
    return example(Connection, **(names | changes))


def audit_record(**changes: Any) -> dict[str, Any]:
    members = {"action": "grant.refreshed", "detail": {"generation": 4}, "workflow_event_id": 17}
    return example(AuditRecord, **(members | changes))


def an_integration(**changes: Any) -> dict[str, Any]:
    members = {"name": "crm", "redirect_uri": "https://e/oauth/callback/int_1"}
    return example(Integration, **(members | changes))


def a_version(**changes: Any) -> dict[str, Any]:
    findings = [{"check": "hosts", "level": "warning", "detail": "a new host"}]
    return example(ProviderVersion, **({"name": "acme-crm", "findings": findings} | changes))


def a_webhook(**changes: Any) -> dict[str, Any]:
    return example(Webhook, **({"name": "hooks", "url": URL} | changes))


def a_delivery(**changes: Any) -> dict[str, Any]:
    members = {"id": "dlv_1", "status": "failed", "response_status": 500, "problem": "refused"}
    return example(WebhookDelivery, **(members | changes))


class ScriptedEvergrant:
    """A route's last response repeats. A route without a script is a 404 without a problem document."""

    def __init__(self) -> None:
        self.requests: list[RecordedRequest] = []
        self.url = ""
        self._responses: dict[str, list[ScriptedResponse]] = {}

    @contextmanager
    def running(self) -> Iterator[Self]:
        with served(self._respond) as self.url:
            yield self

    def script(self, route: str, *responses: ScriptedResponse) -> None:
        """`route` is method and path: `POST /v1/lease`."""
        self._responses[route] = list(responses)

    def count(self, route: str) -> int:
        return [f"{made.method} {made.path}" for made in self.requests].count(route)

    def _respond(self, request: RecordedRequest) -> ScriptedResponse:
        self.requests.append(request)
        left = self._responses.get(f"{request.method} {request.path}")
        if not left:
            return ScriptedResponse(404, "not found", content_type="text/html")
        return left.pop(0) if len(left) > 1 else left[0]


@contextmanager
def served(respond: Callable[[RecordedRequest], ScriptedResponse]) -> Iterator[str]:
    """An HTTP server on loopback in threads of its own; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # a body waits for no acknowledgement of its head
        timeout = 5  # seconds an idle connection is kept

        def log_message(self, format: str, *args: object) -> None:
            """Logs nothing."""

        def serve(self) -> None:
            parts = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            raw = self.rfile.read(int(headers.get("content-length", "0")))
            query = dict(parse_qsl(parts.query))
            response = respond(RecordedRequest(self.command, parts.path, query, headers, raw))
            if response.held is not None:
                assert response.held.wait(PATIENCE_S)
            if response.drop:
                self.close_connection = True
                return
            text = response.body if isinstance(response.body, str) else json.dumps(response.body)
            self.send_response_only(response.status)  # without the real time in a Date header
            fields = {"content-type": response.content_type, "content-length": str(len(text.encode()))}
            for name, value in (fields | dict(response.headers)).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

    for method in ("GET", "POST", "PUT", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.serve)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
