"""What a try to revoke has brought, and when the next one is. Pure."""

from datetime import datetime

from evergrant_server.core.connection import Move, moved
from evergrant_server.core.errors import Code
from evergrant_server.core.messages import Life, RevocationNews
from evergrant_server.core.schedule import Rules, retry_at


def revoking_goes_on(life: Life, news: RevocationNews, now: datetime, rules: Rules, share: float) -> Life:
    """The life after a try: ended when the provider confirmed or can't, else to be tried again."""
    if news.revocation is not None:
        ended = {"state": moved(life.state, Move.REVOCATION_ENDED), "revocation": news.revocation}
        return life.model_copy(update={**ended, "failed": None, "failing_since": None, "retry_at": None})
    failures = life.failures + 1
    capped = rules.model_copy(update={"longest_backoff": rules.longest_revocation_backoff})
    again = retry_at(now, failures, news.failure or Code.INTERNAL, news.retry_after, capped, share)
    after = life.model_copy(update={"failures": failures, "retry_at": again})
    if news.failure is Code.REFRESH_PENDING:  # it only waits for a token, to revoke that too
        return after
    return after.model_copy(update={"failed": news.failure, "failing_since": life.failing_since or now})
