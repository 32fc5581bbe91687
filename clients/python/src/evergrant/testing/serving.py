"""HTTP on loopback for the fake: reads a request, writes the answer, knows nothing else."""

import json
from collections.abc import Callable, Mapping
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from typing import cast
from urllib.parse import parse_qsl, unquote, urlsplit

from evergrant.testing.answers import FakeResponse
from evergrant.testing.clock import ManualClock

Answering = Callable[[str, str, Mapping[str, str], Mapping[str, str], Mapping[str, object]], FakeResponse]


def handler(
    answer: Answering, version: Callable[[], str], clock: ManualClock
) -> type[BaseHTTPRequestHandler]:
    """A handler class that asks `answer`. Its `Date` is the test's clock, not this machine's."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 5  # seconds an idle connection is kept

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def do_DELETE(self) -> None:
            self._serve()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the fake keeps its requests for those who want to see them."""

        def date_time_string(self, timestamp: float | None = None) -> str:
            return format_datetime(clock(), usegmt=True)

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            raw = self.rfile.read(int(headers.get("content-length", "0")))
            said = answer(
                self.command, unquote(parts.path), dict(parse_qsl(parts.query)), headers, _object(raw)
            )
            if said.status == 0:
                self.close_connection = True
                return
            body = json.dumps(said.body).encode()
            self.send_response(said.status)
            told = {"content-type": said.media_type, "evergrant-version": version(), **said.headers}
            for name, value in told.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def _object(raw: bytes) -> Mapping[str, object]:
    try:
        value: object = json.loads(raw)
    except ValueError:
        return {}
    return cast(dict[str, object], value) if isinstance(value, dict) else {}
