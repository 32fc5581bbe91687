"""What a connection's life makes of an answer that came too late to be installed. Pure.

It is never believed as it is: where rotation is strict, another use may have ended its family
meanwhile. It is verified by a refresh, and until that has an answer it is not forgotten.
"""

from datetime import datetime
from typing import Any

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import FAILURES, ErrorCode, FailureKind
from evergrant_server.core.ids import AttemptId
from evergrant_server.core.lifecycle.schedule import LifecycleRules, retry_at
from evergrant_server.core.messages.connection import ConnectionState, GrantResult

# Nobody has a grant here: an answer that came late may be the way back to one.
STATES_WITHOUT_GRANT = (LifecycleState.PENDING_CONSENT, LifecycleState.NEEDS_REAUTH)


# What a life knows of none.
NO_LATE_TOKENS: dict[str, Any] = {"late": None, "late_at": None, "late_failures": 0}


def verifying_late_tokens(
    life: ConnectionState, attempt_id: AttemptId | None, rules: LifecycleRules
) -> ConnectionState | None:
    """The life that verifies it now; None when nothing can come of it any more."""
    if attempt_id is not None and life.state is LifecycleState.ACTIVE and rules.told_of_grants:
        return life.model_copy(update={"late": attempt_id})  # installed already: what holds is asked for
    if attempt_id is None or life.state not in STATES_WITHOUT_GRANT:
        return None
    return life.model_copy(update={**_ended(life, rules), "late": attempt_id})


def verification_at(life: ConnectionState) -> datetime | None:
    """When to try the verification again; None when there is none to try."""
    if life.late is None or life.state not in STATES_WITHOUT_GRANT:
        return None
    return life.late_at or life.retry_at  # a life that began before they were apart has the second


def after_failed_verification(
    life: ConnectionState, news: GrantResult, now: datetime, rules: LifecycleRules, share: float
) -> ConnectionState:
    """Refused: it is as dead as the rest. Anything else says nothing about it: again, later."""
    code = news.failure or ErrorCode.INTERNAL
    if news.failure is None or news.consent_over or FAILURES[code].kind is FailureKind.RECONNECT_NEEDED:
        return life.model_copy(update=_ended(life, rules))
    failures = (life.late_failures if rules.late_apart else life.failures) + 1
    again = retry_at(now, failures, code, news.retry_after, rules, share)
    if not rules.late_apart:
        return life.model_copy(update={"failures": failures, "retry_at": again})
    return life.model_copy(update={"late_failures": failures, "late_at": again})


def with_verification_at(life: ConnectionState, at: datetime) -> ConnectionState:
    """What may have hindered the verification is repaired."""
    return life if life.late_at is None else life.model_copy(update={"late_at": at})


def _ended(life: ConnectionState, rules: LifecycleRules) -> dict[str, Any]:
    """One is done with. A first token that is waited for is asked for again when it would have been."""
    if rules.late_apart and life.waiting_consent is not None:
        return NO_LATE_TOKENS
    return {**NO_LATE_TOKENS, "retry_at": None, "failures": 0}
