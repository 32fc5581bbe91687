"""The worker's clock, corrected by Temporal's and the provider's (ADR 0020)."""

from datetime import datetime

from temporalio import activity

from evergrant_server.core.clock import Clock, clock_correction
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.single_use.attempt import Attempt


def obtained_at(clock: Clock, attempt: Attempt, tokens: TokenSet) -> datetime:
    """When tokens that have just arrived were issued, by the median of three clocks where all are known."""
    temporal = activity.info().started_time - attempt.opened_at if activity.in_activity() else None
    provider = None if tokens.server_time is None else tokens.server_time - clock.now()
    return attempt.tokens_valid_from(tokens.expires_in) + clock_correction(temporal, provider)


def earlier_now(clock: Clock) -> datetime:
    """The earlier of the two clocks. Use it before declaring a token expired."""
    return min(_known_times(clock))


def later_now(clock: Clock) -> datetime:
    """The later of local and Temporal time: a safe base for deadlines."""
    return max(_known_times(clock))


def _known_times(clock: Clock) -> tuple[datetime, ...]:
    now = clock.now()
    return (now, activity.info().started_time) if activity.in_activity() else (now,)
