"""Deadlines and retries: when the client sends a call again, and when it gives up. Decides; waits nowhere."""

import logging
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta

import stamina

from evergrant.api.models import Connection
from evergrant.errors import (
    KINDS,
    ConsentTimeout,
    EvergrantError,
    PlatformUnavailable,
    ProviderUnavailable,
    ReconnectNeeded,
    Unreachable,
)
from evergrant.models import State

# without a handler of the program's, Python would print each retry on stderr
logging.getLogger("stamina").addHandler(logging.NullHandler())

DEADLINE = timedelta(seconds=30)
ATTEMPT_LIMIT_S = 20.0  # longer than the server's own wait for a refresh
CONNECT_LIMIT_S = 5.0
_LONGEST_PAUSE_S = 2.0
_LAST_POLL_S = 2.0
_ANSWERS_WITHIN_S = 1.0  # beside what the server waits for
_STAYS = frozenset({"certificate_untrusted", "tls_failed", "not_http"})


class Deadline:
    """The total time of one call, from now on, for any number of attempts."""

    def __init__(self, total: timedelta, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends = clock() + total.total_seconds()
        self._longest_pause = min(_LONGEST_PAUSE_S, total.total_seconds() / 4)
        self._answered: EvergrantError | None = None

    def seconds_left(self) -> float:
        """Seconds until the deadline, never negative."""
        return max(0.0, self._ends - self._clock())

    def patience_s(self) -> float:
        """Seconds for which the server may let one attempt wait, so that its answer comes in time."""
        return min(ATTEMPT_LIMIT_S, self.seconds_left()) - _ANSWERS_WITHIN_S

    def last_answer(self, error: EvergrantError) -> EvergrantError:
        """The server's own last answer, where it let only the last attempt of this call go unanswered."""
        late = isinstance(error, Unreachable) and error.context.get("timed_out") is True
        return self._answered if late and self._answered is not None else error

    def attempts(self):  # stamina doesn't export the type: an iterator for `for` and `async for`
        return stamina.retry_context(
            on=self.should_retry,
            attempts=None,
            timeout=None,  # `should_retry` ends the attempts: it knows Retry-After
            wait_initial=min(0.1, self._longest_pause),
            wait_max=self._longest_pause,
            wait_jitter=min(0.5, self._longest_pause),
        )

    def should_retry(self, error: Exception) -> bool | float:
        """False, True (after a growing pause), or the seconds to wait before the next attempt.

        A Retry-After beyond the deadline is a False: the client doesn't begin to wait.
        """
        if not isinstance(error, Unreachable | ProviderUnavailable | PlatformUnavailable):
            return False
        if not isinstance(error, Unreachable):
            self._answered = error
        if error.status == 500 or error.code in _STAYS:  # the same request fails again
            return False
        if error.context.get("consent") == "failed":  # its code is spent: only a new consent helps
            return False
        if error.retry_after is None:
            return self.seconds_left() > self._longest_pause
        return error.retry_after if error.retry_after < self.seconds_left() else False

    def poll_timeout_s(self) -> float:
        """Seconds for one poll: the last one, at the deadline, still gets its answer."""
        return max(self.seconds_left(), _LAST_POLL_S)

    def poll_pause_s(self, every: timedelta) -> float:
        """Seconds until the next poll. Raises ConsentTimeout after the deadline."""
        if (left := self.seconds_left()) <= 0:
            raise ConsentTimeout("the subject did not finish the consent in time")
        return min(every.total_seconds(), left)


@contextmanager
def telling_whose_turn(connection: Connection) -> Generator[None]:
    """Raise PlatformUnavailable for a ConsentTimeout after the subject has consented: no worker has exchanged
    the code."""
    try:
        yield
    except ConsentTimeout:
        if connection.next_action != "exchange":
            raise
        raise PlatformUnavailable(
            "the subject has consented, and no worker has exchanged the code yet",
            code="refresh_pending",
            repair="On the server: python -m evergrant_server doctor says whether Temporal and a worker run "
            "and answer. The code lives for minutes; afterwards connect again.",
            context={"connection_id": connection.id},
        ) from None


def is_consent_complete(connection: Connection, newer_than: int) -> bool:
    """True once the consent has led to a grant. Raises the error of a consent that has failed, and
    ReconnectNeeded for a connection that has ended."""
    if connection.state is State.ACTIVE and connection.generation > newer_than:
        return True
    if connection.state.final or connection.state is State.REVOKING:
        raise ReconnectNeeded(
            f"the connection is {connection.state.value}",
            code=connection.reason or connection.state.value,
            repair="Start a new connection.",
            context={"connection_id": connection.id},
        )
    if (failed := connection.failed_consent) is not None:
        context = {"connection_id": connection.id, "reference": failed.reference, "consent": "failed"}
        raise KINDS.get(failed.kind, ReconnectNeeded)(
            f"the consent has failed: {failed.detail}",
            code=failed.code,
            repair=failed.repair,
            context=context,
        )
    return False
