"""The classes of failures: what ends one, who has to act, and what may be tried again."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class FailureKind(StrEnum):
    """The class of a failure, named by what it takes to end it."""

    RECONNECT_NEEDED = "ReconnectNeeded"
    CLIENT_MISCONFIGURED = "ClientMisconfigured"
    PROVIDER_UNAVAILABLE = "ProviderUnavailable"
    DENIED = "Denied"
    PLATFORM_UNAVAILABLE = "PlatformUnavailable"
    BAD_REQUEST = "BadRequest"


class Repairer(StrEnum):
    """Who has to act."""

    SUBJECT = "subject"
    INTEGRATION_ADMIN = "integration_admin"
    TIME = "time"
    PERMIT_ADMIN = "permit_admin"
    OPERATOR = "operator"
    CALLER = "caller"


class RetryAdvice(StrEnum):
    """What the caller's side may do with the same request."""

    NEVER = "never"  # the same request fails again until the repairer acts
    AFTER_REPAIR = "after_repair"  # workflows look again slowly: an admin may have acted
    BACKOFF = "backoff"  # grows with each failure, honours Retry-After


class FailureCause(StrEnum):
    """Why refreshes of a connection fail: each cause has a schedule, and counts its own failures."""

    OUTAGE = "outage"  # the provider answered with its own trouble, or nothing was sent to it
    LOST_ANSWER = "lost_answer"  # the request may have been served, and no answer came
    REFUSAL = "refusal"  # the provider refused the grant by an error that doesn't say whose turn it is
    REPAIR = "repair"  # an admin has to repair something first
    PLATFORM = "platform"  # Evergrant's own: nothing was sent


@dataclass(frozen=True)
class FailureRule:
    """One row of the table: what a code means for retries, the wire and the reader."""

    kind: FailureKind
    repairer: Repairer
    retry: RetryAdvice
    status: int
    meaning: str
    repair: str


def rules_of(
    kind: FailureKind, repairer: Repairer, usual_retry: RetryAdvice, usual_status: int
) -> Callable[..., FailureRule]:
    """Makes the rows of this kind."""

    def row(
        meaning: str, repair: str, *, status: int = usual_status, retry: RetryAdvice = usual_retry
    ) -> FailureRule:
        return FailureRule(kind, repairer, retry, status, meaning, repair)

    return row


LATER = "Try again after Retry-After seconds."
# the kinds of the failure table
reconnect = rules_of(FailureKind.RECONNECT_NEEDED, Repairer.SUBJECT, RetryAdvice.NEVER, 409)
client = rules_of(FailureKind.CLIENT_MISCONFIGURED, Repairer.INTEGRATION_ADMIN, RetryAdvice.AFTER_REPAIR, 424)
provider = rules_of(FailureKind.PROVIDER_UNAVAILABLE, Repairer.TIME, RetryAdvice.BACKOFF, 503)
denied = rules_of(FailureKind.DENIED, Repairer.PERMIT_ADMIN, RetryAdvice.NEVER, 403)
platform = rules_of(FailureKind.PLATFORM_UNAVAILABLE, Repairer.OPERATOR, RetryAdvice.BACKOFF, 503)
caller = rules_of(FailureKind.BAD_REQUEST, Repairer.CALLER, RetryAdvice.NEVER, 400)
refused = rules_of(FailureKind.DENIED, Repairer.CALLER, RetryAdvice.NEVER, 403)
closed = rules_of(FailureKind.DENIED, Repairer.OPERATOR, RetryAdvice.NEVER, 403)
host = rules_of(FailureKind.CLIENT_MISCONFIGURED, Repairer.OPERATOR, RetryAdvice.AFTER_REPAIR, 424)
