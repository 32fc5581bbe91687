"""The fake server: how a test scripts it, and the thread that answers on loopback."""

from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from http.server import ThreadingHTTPServer
from threading import RLock, Thread
from typing import Self

from evergrant.models import State
from evergrant.testing.connections import LIFETIME, FakeConnection, ManualClock
from evergrant.testing.routes import route
from evergrant.testing.serving import FakeResponse, Request, handler_class, problem

API_KEY = "evg_fake_key"


class FakeEvergrant:
    """An Evergrant that a test scripts. A context manager; threads may use it.

    A lease of an unknown connection creates it, waiting for consent. `requests` holds every request.
    `version` is the server version that it reports.
    """

    def __init__(self, clock: ManualClock | None = None, *, api_key: str = API_KEY) -> None:
        self.clock = clock or ManualClock()
        self.api_key = api_key
        self.version = "0.1.0"
        self.requests: list[Request] = []
        self.connections: dict[str, FakeConnection] = {}
        self.lock = RLock()
        self._next: deque[FakeResponse] = deque()
        self._down: FakeResponse | None = None
        self._http = ThreadingHTTPServer(
            ("127.0.0.1", 0), handler_class(self.respond, lambda: self.version, self.clock)
        )
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def connect(
        self,
        integration: str,
        subject: str,
        *,
        label: str = "default",
        token: str | None = None,
        lifetime: timedelta | None = LIFETIME,
        scopes: tuple[str, ...] = (),
    ) -> FakeConnection:
        """An active connection. `lifetime` is that of each token, None for tokens that never expire."""
        with self.lock:
            made = self.pending(integration, subject, label=label, lifetime=lifetime, scopes=scopes)
            made.consent()
            if token is not None:
                made.token = token
            return made

    def pending(
        self,
        integration: str,
        subject: str,
        *,
        label: str = "default",
        lifetime: timedelta | None = LIFETIME,
        scopes: tuple[str, ...] = (),
    ) -> FakeConnection:
        """A connection that waits for its subject: a lease is `ConsentRequired`, until `consent()`."""
        with self.lock:
            made = FakeConnection(
                id=f"con_fake{len(self.connections) + 1}",
                integration=integration,
                subject=subject,
                label=label,
                now=self.clock,
                url=self.url,
                lifetime=lifetime,
                scopes=scopes,
            )
            made.events.append((self.clock(), "connection.created"))
            self.connections[made.id] = made
            return made

    def fail(
        self, code: str, *, kind: str, status: int, times: int = 1, retry_after: float | None = None
    ) -> None:
        """Answer the next `times` requests with this problem."""
        with self.lock:
            self._next.extend([problem(status, kind, code, retry_after=retry_after)] * times)

    def drop(self, times: int = 1) -> None:
        """Close the next `times` connections without a response; their requests have no effect."""
        with self.lock:
            self._next.extend([FakeResponse(0)] * times)

    def go_down(self, retry_after: float | None = None) -> None:
        """An outage: every request gets 503 `store_unavailable`, until `come_back`."""
        with self.lock:
            self._down = problem(503, "PlatformUnavailable", "store_unavailable", retry_after=retry_after)

    def come_back(self) -> None:
        with self.lock:
            self._down = None
            self._next.clear()

    def called(self, method: str, path: str) -> int:
        """How often a route was called: `called("POST", "/v1/lease")`."""
        with self.lock:
            return [(made.method, made.path) for made in self.requests].count((method, path))

    def respond(self, request: Request) -> FakeResponse:
        with self.lock:
            self.requests.append(request)
            if self._down is not None:
                return self._down
            if self._next:
                return self._next.popleft()
            is_known = request.headers.get("authorization") == f"Bearer {self.api_key}"
            if not request.path.startswith(("/connect/", "/oauth/token")) and not is_known:
                return problem(401, "BadRequest", "unauthenticated")
            return route(self, request)

    def find(self, integration: str, subject: str, label: str) -> FakeConnection | None:
        """The connection that has not ended, else the newest one."""
        names = (integration, subject, label)
        same_names = [
            made
            for made in self.connections.values()
            if (made.integration, made.subject, made.label) == names
        ]
        live = [made for made in same_names if not made.state.final]
        return next(iter(live or same_names[::-1]), None)

    def select(self, query: Mapping[str, str]) -> list[FakeConnection]:
        filters = {name: query[name] for name in ("integration", "subject") if name in query}
        return [
            connection
            for connection in self.connections.values()
            if all(getattr(connection, name) == value for name, value in filters.items())
            and connection.state == State(query.get("state", connection.state))
        ]
