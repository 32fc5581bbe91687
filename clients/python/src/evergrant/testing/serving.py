"""The HTTP of the fake: its handler, which reads a request and writes the response, and problem documents."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from typing import cast
from urllib.parse import parse_qsl, unquote, urlsplit

from evergrant.testing.connections import ManualClock


@dataclass(frozen=True, slots=True)
class FakeResponse:
    """A status of 0 closes the connection without a response."""

    status: int
    body: Mapping[str, object] = field(default_factory=dict[str, object], repr=False)
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    media_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Request:
    """One request that reached the fake. Headers have lower-case names."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str] = field(repr=False)
    body: Mapping[str, object] = field(repr=False)


def handler_class(
    respond: Callable[[Request], FakeResponse], version: Callable[[], str], clock: ManualClock
) -> type[BaseHTTPRequestHandler]:
    """A handler that calls `respond`. Its `Date` header is the test's clock, not this machine's."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # a body waits for no acknowledgement of its head
        timeout = 5  # seconds an idle connection is kept

        def log_message(self, format: str, *args: object) -> None:
            """Logs nothing: `FakeEvergrant.requests` holds the requests."""

        def date_time_string(self, timestamp: float | None = None) -> str:
            return format_datetime(clock(), usegmt=True)

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            raw = self.rfile.read(int(headers.get("content-length", "0")))
            path, query = unquote(parts.path), dict(parse_qsl(parts.query))
            response = respond(Request(self.command, path, query, headers, _object(raw)))
            if response.status == 0:
                self.close_connection = True
                return
            body = json.dumps(response.body).encode()
            self.send_response(response.status)
            fields = {"content-type": response.media_type, "evergrant-version": version(), **response.headers}
            for name, value in fields.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_DELETE = do_GET  # noqa: N815 http.server calls them so

    return Handler


def _object(raw: bytes) -> Mapping[str, object]:
    try:
        value: object = json.loads(raw)
    except ValueError:
        return {}
    return cast(dict[str, object], value) if isinstance(value, dict) else {}


def problem(
    status: int, kind: str, code: str, *, retry_after: float | None = None, **context: object
) -> FakeResponse:
    """A problem document (RFC 9457) in Evergrant's format."""
    body = {
        "type": f"/docs#{code}",
        "title": code,
        "status": status,
        "detail": "the fake was told to",
        "code": code,
        "kind": kind,
        "repair": "Script another response.",
        **context,
    }
    headers: dict[str, str] = {}
    if retry_after is not None:
        body["retry_after"] = retry_after
        headers["retry-after"] = str(max(1, round(retry_after)))
    return FakeResponse(status, body, headers, "application/problem+json")
