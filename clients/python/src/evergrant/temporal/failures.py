"""The one mapping from an `EvergrantError` that leaves an activity to Temporal's retries."""

from datetime import timedelta

from temporalio.exceptions import ApplicationError

from evergrant.errors import (
    BadRequest,
    ClientMisconfigured,
    Denied,
    EvergrantError,
    ProtocolError,
    ReconnectNeeded,
)

# The same attempt fails again until a person has acted.
_NON_RETRYABLE = (ReconnectNeeded, Denied, BadRequest, ProtocolError)
_RETRY_AFTER_MISCONFIGURATION = timedelta(minutes=1)  # the integration's admin may have corrected it


def application_error(error: EvergrantError) -> ApplicationError:
    """The failure that Temporal records: kind and code, never a connect link."""
    connection_id = error.connection_id if isinstance(error, ReconnectNeeded) else None
    return ApplicationError(
        str(error),
        {"code": error.code, "connection_id": connection_id, "repair": error.repair},
        type=type(error).__name__,
        non_retryable=isinstance(error, _NON_RETRYABLE),
        next_retry_delay=_retry_delay(error),
    )


def _retry_delay(error: EvergrantError) -> timedelta | None:
    if error.retry_after is not None:
        return timedelta(seconds=error.retry_after)
    return _RETRY_AFTER_MISCONFIGURATION if isinstance(error, ClientMisconfigured) else None
