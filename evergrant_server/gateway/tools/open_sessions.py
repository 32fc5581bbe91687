"""How many sessions of the older era each caller has open: the SDK counts those of all."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from evergrant_server.access.limits import RateLimited


@dataclass
class _Session:
    used: float
    requests: int = 0  # that are open


class OpenSessions:
    """The sessions of one process, by caller and id. The SDK ends those that are idle for `idle_s`."""

    elapsed = staticmethod(time.monotonic)

    def __init__(self, most: int, idle_s: float) -> None:
        self._most, self._idle_s = most, idle_s
        self._of: dict[str, dict[str, _Session]] = {}

    def require_room(self, caller: str) -> None:
        """Raises RateLimited for a caller with too many."""
        now, mine = self.elapsed(), self._of.get(caller, {})
        for id in [id for id, it in mine.items() if not it.requests and now - it.used > self._idle_s]:
            del mine[id]
        if len(mine) >= self._most:
            raise RateLimited("sessions", f"The app has {self._most} MCP sessions open.", self._idle_s)

    def began(self, caller: str, id: str) -> None:
        self._of.setdefault(caller, {})[id] = _Session(self.elapsed())

    def ended(self, caller: str, id: str) -> None:
        mine = self._of.get(caller, {})
        mine.pop(id, None)
        if not mine:
            self._of.pop(caller, None)

    @contextmanager
    def used(self, caller: str, id: str | None) -> Iterator[None]:
        """A request of a session is open until the block ends."""
        session = None if id is None else self._of.get(caller, {}).get(id)
        if session is None:
            yield
            return
        session.requests += 1
        try:
            yield
        finally:
            session.requests -= 1
            session.used = self.elapsed()
