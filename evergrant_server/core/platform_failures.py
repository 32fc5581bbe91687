"""The failures of Evergrant itself, which the operator repairs: their rows of the table in `core.errors`."""

from evergrant_server.core.failure_kinds import LATER, FailureRule, RetryAdvice, platform

PLATFORM_FAILURES: dict[str, FailureRule] = {
    "store_unavailable": platform("The store can't be reached.", "Check EVERGRANT_DATABASE_URL."),
    "store_conflict": platform("Another change came first.", "Try again.", status=409),
    "schema_mismatch": platform(
        "The database has another schema version than this code.",
        "Run: python -m evergrant_server db upgrade. A newer database needs a newer server.",
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
    "rate_limited": platform(
        "A limit of requests is reached: violated-policies names it.", LATER, status=429
    ),
    "journal_unavailable": platform(
        "A worker's journal has no room for a provider's answer, so nothing was sent.",
        "Make room on the worker's disk, or give it a data folder it can write.",
    ),
    "temporal_unavailable": platform(
        "Temporal can't be reached.",
        "Check EVERGRANT_TEMPORAL_ADDRESS and the Temporal server. After the loss of its database, "
        "python -m evergrant_server reconcile starts the workflows anew.",
    ),
    "internal": platform("Evergrant failed for an unknown reason.", "Read the log.", status=500),
}
