"""What a connection's life makes of an answer that came too late to be installed. Pure.

It is never believed as it is: where rotation is strict, another use may have ended its family
meanwhile. It is verified by a refresh, and until that has an answer it is not forgotten.
"""

from datetime import datetime

from evergrant_server.core.connection import State
from evergrant_server.core.errors import FAILURES, Code, Kind
from evergrant_server.core.ids import AttemptId
from evergrant_server.core.messages import GrantNews, Life
from evergrant_server.core.schedule import Rules, retry_at

# Nobody has a grant here: an answer that came late may be the way back to one.
WANTED = (State.PENDING_CONSENT, State.NEEDS_REAUTH)


def to_verify(life: Life, attempt_id: AttemptId | None) -> Life | None:
    """The life that verifies it now; None when nothing can come of it any more."""
    if attempt_id is None or life.state not in WANTED:
        return None
    return life.model_copy(update={"late": attempt_id, "retry_at": None, "failures": 0})


def verify_at(life: Life) -> datetime | None:
    """When to try the verification again; None when there is none to try."""
    return life.retry_at if life.late is not None and life.state in WANTED else None


def not_verified(life: Life, news: GrantNews, now: datetime, rules: Rules, share: float) -> Life:
    """Refused: it is as dead as the rest. Anything else says nothing about it: again, later."""
    code = news.failure or Code.INTERNAL
    if news.failure is None or FAILURES[code].kind is Kind.RECONNECT_NEEDED:
        return life.model_copy(update={"late": None, "retry_at": None, "failures": 0})
    failures = life.failures + 1
    again = retry_at(now, failures, code, news.retry_after, rules, share)
    return life.model_copy(update={"failures": failures, "retry_at": again})
