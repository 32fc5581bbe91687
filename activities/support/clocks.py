"""How wrong a worker's clock is, where Temporal's and the provider's both say so."""

from datetime import datetime

from temporalio import activity

from evergrant_server.core.clock import Clock, clock_correction
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.single_use.attempt import Attempt


def obtained_at(clock: Clock, attempt: Attempt, tokens: TokenSet) -> datetime:
    """From when tokens that have just come live: by the middle one of three clocks, where all are known."""
    temporal = activity.info().started_time - attempt.opened_at if activity.in_activity() else None
    provider = None if tokens.said_at is None else tokens.said_at - clock.now()
    return attempt.tokens_valid_from(tokens.expires_in) + clock_correction(temporal, provider)


def earlier_now(clock: Clock) -> datetime:
    """Our clock's hour or Temporal's: what is over by one of them alone may not be."""
    return min(_known_times(clock))


def later_now(clock: Clock) -> datetime:
    """A deadline that counts from here comes too soon by nobody's clock."""
    return max(_known_times(clock))


def _known_times(clock: Clock) -> tuple[datetime, ...]:
    now = clock.now()
    return (now, activity.info().started_time) if activity.in_activity() else (now,)
