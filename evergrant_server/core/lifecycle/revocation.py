"""What a try to revoke has brought, and when the next one is. Pure."""

from datetime import datetime

from evergrant_server.core.connections.connection import StateChange, state_after
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.lifecycle.schedule import LifecycleRules, retry_at
from evergrant_server.core.messages.connection import ConnectionState, RevocationResult


def after_revocation(
    life: ConnectionState, news: RevocationResult, now: datetime, rules: LifecycleRules, share: float
) -> ConnectionState:
    """The life after a try: ended when the provider confirmed or can't, else to be tried again."""
    if news.revocation is not None:
        ended = {
            "state": state_after(life.state, StateChange.REVOCATION_ENDED),
            "revocation": news.revocation,
        }
        return life.model_copy(update={**ended, "failed": None, "failing_since": None, "retry_at": None})
    failures = life.failures + 1
    capped = rules.model_copy(update={"longest_backoff": rules.longest_revocation_backoff})
    again = retry_at(now, failures, news.failure or ErrorCode.INTERNAL, news.retry_after, capped, share)
    after = life.model_copy(update={"failures": failures, "retry_at": again})
    if news.failure is ErrorCode.REFRESH_PENDING:  # it only waits for a token, to revoke that too
        return after
    return after.model_copy(update={"failed": news.failure, "failing_since": life.failing_since or now})
