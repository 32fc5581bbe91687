"""The activity interceptor: gives an activity its leases and keeps their tokens out of Temporal."""

from collections.abc import Callable
from typing import Any

from temporalio import activity
from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure
from temporalio.converter import DefaultFailureConverter
from temporalio.exceptions import ApplicationError
from temporalio.worker import (
    ActivityInboundInterceptor,
    ActivityOutboundInterceptor,
    ExecuteActivityInput,
    Interceptor,
)

from evergrant.errors import EvergrantError
from evergrant.models import Lease, LeaseLeak
from evergrant.temporal.failures import application_error
from evergrant.temporal.leak_detection import contains_secret
from evergrant.temporal.leases import CURRENT_LEASES, ActivityLeases, WorkerClients


class LeaseInterceptor(Interceptor):
    """`clients` is called for each activity: the clients are opened when the worker runs."""

    def __init__(self, clients: Callable[[], WorkerClients]) -> None:
        self._clients = clients

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _Inbound(next, self._clients)


class _Inbound(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, clients: Callable[[], WorkerClients]) -> None:
        super().__init__(next)
        self._clients = clients

    def init(self, outbound: ActivityOutboundInterceptor) -> None:
        super().init(_Outbound(outbound))

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        leases = ActivityLeases(self._clients())
        previous = CURRENT_LEASES.set(leases)
        try:
            result = await self.next.execute_activity(input)
        except Exception as error:
            failure = _without_secrets(error, leases)
        else:
            _refuse_secrets("result", (result,), leases)
            return result
        finally:
            CURRENT_LEASES.reset(previous)
        # Raised here, not above: inside the handler the original would become its context.
        raise failure


class _Outbound(ActivityOutboundInterceptor):
    def heartbeat(self, *details: Any) -> None:
        if leases := CURRENT_LEASES.get():
            _refuse_secrets("heartbeat", details, leases)
        super().heartbeat(*details)


def _refuse_secrets(what: str, values: tuple[Any, ...], leases: ActivityLeases) -> None:
    """Raises a failure that is not retried, and doesn't quote the secret."""
    if not leases.secrets:
        return
    if any(isinstance(value, Lease) for value in values):
        raise _refusal(what)
    try:
        payloads: list[Payload] = activity.payload_converter().to_payloads(values)
    except LeaseLeak:
        raise _refusal(what) from None
    if any(contains_secret(payload.SerializeToString(), leases.secrets) for payload in payloads):
        raise _refusal(what)


def _without_secrets(error: Exception, leases: ActivityLeases) -> Exception:
    """The error itself, or a replacement when it quotes a secret."""
    failure = application_error(error) if isinstance(error, EvergrantError) else error
    if not leases.secrets:
        return failure
    recorded = Failure()
    DefaultFailureConverter().to_failure(failure, activity.payload_converter(), recorded)
    if not contains_secret(recorded.SerializeToString(), leases.secrets):
        return failure
    return ApplicationError(
        f"{type(error).__name__}: withheld, because it quoted a leased token",
        type="TokenInFailure",
        non_retryable=isinstance(failure, ApplicationError) and failure.non_retryable,
    )


def _refusal(what: str) -> ApplicationError:
    return ApplicationError(
        f"the activity's {what} holds a leased token; return facts, and lease where the token is used",
        type=f"TokenIn{what.capitalize()}",
        non_retryable=True,
    )
