"""What an `EvergrantError` that leaves an activity means for its retries. Decided here alone."""

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

# The same attempt fails again until a person has acted, and who that is isn't this worker.
_FINAL = (ReconnectNeeded, Denied, BadRequest, ProtocolError)
_ADMIN_MAY_HAVE_ACTED = timedelta(minutes=1)


def application_error(error: EvergrantError) -> ApplicationError:
    """The failure that Temporal records: kind and code, never a connect link."""
    connection_id = error.connection_id if isinstance(error, ReconnectNeeded) else None
    return ApplicationError(
        str(error),
        {"code": error.code, "connection_id": connection_id, "repair": error.repair},
        type=type(error).__name__,
        non_retryable=isinstance(error, _FINAL),
        next_retry_delay=_delay(error),
    )


def _delay(error: EvergrantError) -> timedelta | None:
    if error.retry_after is not None:
        return timedelta(seconds=error.retry_after)
    return _ADMIN_MAY_HAVE_ACTED if isinstance(error, ClientMisconfigured) else None
