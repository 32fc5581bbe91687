"""Records calls, answers and secrets of the token endpoint, and can withhold an answer."""

import json
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

from django.http import HttpRequest, HttpResponse
from django.urls import reverse

HOLD_LIMIT_S = 300.0


class Counts:
    """Calls and answers per grant type, and every secret that was sent. In memory.

    The demo and the tests search for the secrets where none may be.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: Counter[str] = Counter()
        self._answers: Counter[tuple[str, int]] = Counter()
        self._secrets: set[str] = set()

    def called(self, what: str) -> None:
        with self._lock:
            self._calls[what] += 1

    def answered(self, what: str, status: int) -> None:
        with self._lock:
            self._answers[what, status] += 1

    def crossed(self, request: HttpRequest, response: HttpResponse) -> None:
        """Record the single-use values of a request and the tokens of its answer."""
        found = [request.POST.get(name) for name in ("code", "code_verifier", "refresh_token", "token")]
        if response.status_code == 200 and response.content:
            reply = json.loads(response.content)
            found += [reply.get(name) for name in ("access_token", "refresh_token")]
        with self._lock:
            self._secrets.update(str(secret) for secret in found if secret)

    def secrets(self) -> list[str]:
        with self._lock:
            return sorted(self._secrets)

    def snapshot(self) -> dict[str, dict[str, object]]:
        with self._lock:
            answers: dict[str, dict[str, int]] = {}
            for (what, status), number in self._answers.items():
                answers.setdefault(what, {})[str(status)] = number
            return {"calls": dict(self._calls), "answers": dict(answers)}


class Hold:
    """Withholds the next answer to one grant type, after the server has processed the request.

    The server has committed by then: a client that is killed while it waits has spent its refresh
    token and never receives the new one.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._armed: str | None = None
        self._holding = 0
        self._abandoned = 0
        self._released = 0
        self._release_number = 0

    def arm(self, grant_type: str) -> None:
        with self._changed:
            self._armed = grant_type

    def release(self) -> None:
        """Send every withheld answer, and disarm."""
        with self._changed:
            self._armed = None
            self._release_number += 1
            self._changed.notify_all()

    def snapshot(self) -> dict[str, object]:
        with self._changed:
            return {
                "armed": self._armed,
                "holding": self._holding,
                "abandoned": self._abandoned,
                "released": self._released,
            }

    def withhold(self, grant_type: str, client: socket.socket) -> None:
        """Wait, if this grant type is armed, until released or until the client has disconnected."""
        with self._changed:
            if self._armed != grant_type:
                return
            self._armed = None
            self._holding += 1
            seen, give_up = self._release_number, time.monotonic() + HOLD_LIMIT_S
            while self._release_number == seen and not _gone(client) and time.monotonic() < give_up:
                self._changed.wait(0.05)
            self._holding -= 1
            if self._release_number == seen:
                self._abandoned += 1
            else:
                self._released += 1


def _gone(client: socket.socket) -> bool:
    """True when the client has closed: the socket is readable but has no data."""
    try:
        readable, _, _ = select.select([client], [], [], 0)
        return bool(readable) and client.recv(1, socket.MSG_PEEK) == b""
    except OSError:
        return True


counts = Counts()
hold = Hold()


class ObserveTokenEndpoint:
    """Django middleware around the token and revocation endpoints."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response
        self._revocation = reverse("oauth2_provider:revoke-token")
        self._token = reverse("oauth2_provider:token")

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if request.method != "POST" or request.path not in (self._token, self._revocation):
            return self._get_response(request)
        what = "revocation"
        if request.path == self._token:
            what = str(request.POST.get("grant_type", "none"))
        counts.called(what)
        response = self._get_response(request)
        counts.answered(what, response.status_code)
        counts.crossed(request, response)
        hold.withhold(what, request.META["authorization_server.connection"])
        return response
