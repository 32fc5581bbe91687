"""When a connection is looked at next. Every function is pure; jitter comes from the id."""

import hashlib
from datetime import datetime, timedelta
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from evergrant_server.core.errors import FAILURES, Code, Retry


class RefreshPolicy(StrEnum):
    WARM = "warm"  # always refreshed ahead
    ON_DEMAND = "on_demand"  # only when somebody asks
    ADAPTIVE = "adaptive"  # ahead, if the current generation was leased


class Rules(BaseModel):
    """The numbers behind decisions. A run names its version, since a change here changes replay."""

    model_config = ConfigDict(frozen=True)

    margin: timedelta = timedelta(minutes=5)  # capped at a quarter of the token's lifetime
    spread: float = 0.2  # the share of the margin over which a fleet's refreshes are spread
    first_backoff: timedelta = timedelta(seconds=2)
    longest_backoff: timedelta = timedelta(minutes=30)
    repair_interval: timedelta = timedelta(minutes=15)  # for what an admin must repair
    longest_revocation_backoff: timedelta = timedelta(hours=1)
    consent_grace: timedelta = timedelta(minutes=1)  # a callback at the deadline still gets through
    longest_history: int = 2000  # events after which a run continues as new; Temporal's own limit is higher
    keep_alive_share: float = 0.5  # refresh an idle grant after this share of its idle life


RULES: dict[int, Rules] = {1: Rules()}
NEWEST_RULES = max(RULES)


def jitter(identity: str, generation: int) -> float:
    """A share in [0, 1) that is always the same for this connection and generation."""
    digest = hashlib.sha256(f"{identity}:{generation}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def due_at(obtained_at: datetime, expires_at: datetime, rules: Rules, share: float) -> datetime:
    """When a refresh ahead of expiry starts: at the margin, up to `spread` of it earlier."""
    margin = min(rules.margin, (expires_at - obtained_at) / 4)
    return expires_at - margin - margin * rules.spread * share


def keep_alive_at(obtained_at: datetime, idle_s: float, rules: Rules, share: float) -> datetime:
    """When an idle grant is refreshed only to keep its refresh token alive."""
    idle = timedelta(seconds=idle_s)
    return obtained_at + idle * rules.keep_alive_share * (1 - 0.1 * share)


def retry_at(
    now: datetime, failures: int, code: Code, retry_after: float | None, rules: Rules, share: float
) -> datetime:
    """When to try again after `failures` failures in a row: the table's class, then Retry-After."""
    if FAILURES[code].retry is Retry.AFTER_REPAIR:
        return now + rules.repair_interval
    wait = min(rules.first_backoff * 2 ** min(failures - 1, 20), rules.longest_backoff)
    wait = wait * (0.75 + 0.5 * share)
    if retry_after is not None:
        wait = max(wait, timedelta(seconds=retry_after))
    return now + wait
