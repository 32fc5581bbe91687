"""How wrong a worker's clock is, where Temporal's and the provider's both say so."""

from datetime import datetime

from temporalio import activity

from evergrant_server.core.attempt import Attempt
from evergrant_server.core.clock import Clock, correction
from evergrant_server.core.grant import TokenSet


def living_from(clock: Clock, attempt: Attempt, tokens: TokenSet) -> datetime:
    """From when tokens that have just come live: by the middle one of three clocks, where all are known."""
    temporal = activity.info().started_time - attempt.opened_at if activity.in_activity() else None
    provider = None if tokens.said_at is None else tokens.said_at - clock.now()
    return attempt.tokens_from(tokens.expires_in) + correction(temporal, provider)


def earlier_hour(clock: Clock) -> datetime:
    """Our clock's hour or Temporal's: what is over by one of them alone may not be."""
    return min(_both(clock))


def later_hour(clock: Clock) -> datetime:
    """A deadline that counts from here comes too soon by nobody's clock."""
    return max(_both(clock))


def _both(clock: Clock) -> tuple[datetime, ...]:
    now = clock.now()
    return (now, activity.info().started_time) if activity.in_activity() else (now,)
