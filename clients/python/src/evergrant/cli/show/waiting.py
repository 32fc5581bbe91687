"""A call that is tried again says so on stderr: the reader learns why the command takes its time."""

import sys

from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from evergrant.retries import DEADLINE

_SAID_AT_S = 2.0


def say_while_waiting() -> None:
    set_on_retry_hooks([_say])


def _say(details: RetryDetails) -> None:
    until = details.waited_so_far + details.wait_for
    if details.waited_so_far < _SAID_AT_S <= until:
        limit = f"{DEADLINE.total_seconds():.0f} s"
        print(f"evergrant: trying for up to {limit}: {details.caused_by}", file=sys.stderr, flush=True)
