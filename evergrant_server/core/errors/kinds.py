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


LATER = "Try again later."  # the client names the seconds of Retry-After
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

# The rows of what the operator repairs, by code; the others are in `core.errors`.
PLATFORM_FAILURES: dict[str, FailureRule] = {
    "store_unavailable": platform("The store can't be reached.", "Check EVERGRANT_DATABASE_URL."),
    "store_conflict": platform("Another change came first.", "Try again.", status=409),
    "schema_mismatch": platform(
        "The database has a schema that this code doesn't work with.",
        "Run: python -m evergrant_server db upgrade. A newer database may need a newer server.",
    ),
    "store_behind": platform(
        "The store holds an older generation than the workflow knows: it was restored from a backup, "
        "and its refresh token may be spent.",
        "Restore a newer backup, or reauthorize the connection.",
        retry=RetryAdvice.AFTER_REPAIR,
    ),
    "key_unavailable": platform(
        "A key that sealed this row is not in the key ring.",
        "Restore the key file; or, where a key service wraps the keys, see why it doesn't answer: "
        "python -m evergrant_server doctor.",
    ),
    "key_denied": platform(
        "The key service refuses its key to this process.",
        "Allow the principal that python -m evergrant_server doctor names to use that key.",
    ),
    "key_gone": platform(
        "A key of the key service doesn't exist, is disabled, or waits for its deletion.",
        "Enable or restore the key that python -m evergrant_server doctor names.",
    ),
    "seal_broken": platform(
        "A sealed value was altered, moved or sealed with another key.",
        "Restore the named row from a backup.",
        status=500,
    ),
    "authority_broken": platform(
        "A row that says who may do what was not written by Evergrant.",
        "Find all such rows: python -m evergrant_server authority verify.",
        status=500,
    ),
    "audit_unavailable": platform(
        "The audit record could not be committed, so no token was leased.", "Check the store."
    ),
    "region_fenced": platform(
        "This region doesn't have the authority to serve, or hasn't renewed it in time: another region may "
        "serve in its place.",
        "See which one does: python -m evergrant_server region status. If the other region is down and "
        "stays down: python -m evergrant_server region detach.",
    ),
    "region_away": platform(
        "The other region doesn't confirm that it has what was committed here, and the settings say to wait "
        "for it.",
        "Repair the replication (python -m evergrant_server region status), or go on without the other "
        "region: EVERGRANT_REGION_AWAY=continue.",
    ),
    "rate_limited": platform(
        "A limit of requests is reached: violated-policies names it.", LATER, status=429
    ),
    "journal_unavailable": platform(
        "A worker's journal has no room for a provider's answer, so nothing was sent.",
        "Make room on the worker's disk, or give it a data folder it can write.",
    ),
    "tenant_moved": caller(
        "The tenant lives in another cell of this operator's: moved_to is its address.",
        "Send requests there: set EVERGRANT_URL to it, or name it in EVERGRANT_CELLS.",
        status=421,
    ),
    "tenant_arriving": platform(
        "The tenant is being moved here from another cell, and is served there or in a moment here.", LATER
    ),
    "temporal_unavailable": platform(
        "Temporal can't be reached.",
        "Check EVERGRANT_TEMPORAL_ADDRESS and the Temporal server. After the loss of its database, "
        "python -m evergrant_server reconcile starts the workflows anew.",
    ),
    "internal": platform("Evergrant failed for an unknown reason.", "Read the log.", status=500),
}
