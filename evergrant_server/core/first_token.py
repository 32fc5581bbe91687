"""What a connection's life makes of a first token that nobody has to consent to. Pure."""

from datetime import datetime

from evergrant_server.core.connection import State
from evergrant_server.core.device import USUAL_INTERVAL_S, Poll, next_interval, poll_at
from evergrant_server.core.errors import FAILURES, Code, Retry
from evergrant_server.core.ids import ConsentId
from evergrant_server.core.messages import GrantNews, Life
from evergrant_server.core.schedule import Rules, retry_at

_WAITS = (State.PENDING_CONSENT, State.NEEDS_REAUTH)


def minted(life: Life) -> Life:
    """It came: nothing is waited for any more."""
    return life.model_copy(update={"waiting_consent": None, "poll_at": None, "poll_interval_s": None})


def polled(life: Life, news: GrantNews, poll: Poll, consent: ConsentId | None, now: datetime) -> Life:
    """Nobody has approved the device code yet: ask again, never sooner than the last time."""
    interval = next_interval(news.interval_s or life.poll_interval_s or USUAL_INTERVAL_S, poll)
    changes = {
        "waiting_consent": consent,
        "poll_interval_s": interval,
        "poll_at": poll_at(now, interval),
    }
    return life.model_copy(update=changes)


def not_minted(
    life: Life, news: GrantNews, consent: ConsentId | None, now: datetime, rules: Rules, share: float
) -> Life:
    """What time or an admin may repair is tried again; where a grant is at work, nothing is lost."""
    code = news.failure or Code.INTERNAL
    life = minted(life).model_copy(update={"refusal": code})
    if life.state not in _WAITS:
        return life
    failures = life.failures + 1
    life = life.model_copy(update={"failures": failures, "reason": code, "retry_at": None})
    if FAILURES[code].retry is Retry.NEVER or news.over:
        return life
    again = retry_at(now, failures, code, news.retry_after, rules, share)
    return life.model_copy(update={"waiting_consent": consent, "retry_at": again})
