"""`EvergrantPlugin`: one line in the worker, or in the Temporal client that the worker uses.

Its interceptor lets `leases.lease` work in an activity and keeps tokens out of Temporal.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any, Unpack

from temporalio import activity
from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure
from temporalio.converter import DefaultFailureConverter
from temporalio.exceptions import ApplicationError
from temporalio.plugin import SimplePlugin
from temporalio.worker import (
    ActivityInboundInterceptor,
    ActivityOutboundInterceptor,
    ExecuteActivityInput,
    Interceptor,
    Worker,
    WorkerConfig,
)

from evergrant.async_client import AsyncEvergrant
from evergrant.errors import (
    BadRequest,
    ClientMisconfigured,
    Denied,
    EvergrantError,
    ProtocolError,
    ReconnectNeeded,
)
from evergrant.lease import Lease, LeaseLeak
from evergrant.sync_client import Evergrant
from evergrant.temporal.ensuring import EnsureActivity, OnConsentRequired
from evergrant.temporal.leases import CURRENT_LEASES, ActivityLeases, WorkerClients, contains_secret
from evergrant.transport import ClientOptions

# The same attempt fails again until a person has acted.
_NON_RETRYABLE = (ReconnectNeeded, Denied, BadRequest, ProtocolError)
_RETRY_AFTER_MISCONFIGURATION = timedelta(minutes=1)  # the integration's admin may have corrected it


class EvergrantPlugin(SimplePlugin):
    """Gives a worker's activities their leases, and refuses tokens in what they send to Temporal.

    Takes the arguments of `Evergrant`, and opens its clients when a worker runs: a process that only
    starts workflows needs no API key. Pass it to the Temporal client or to the worker; given to
    both, it still acts once. It leaves the data converter alone.

    `on_consent_required` gets each new link that a `workflow.ensure` waits for, in the worker, to send it to
    the subject: once, or again after a worker that was killed meanwhile.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        on_consent_required: OnConsentRequired | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        super().__init__(  # pyright: ignore[reportUnknownMemberType]  # temporalio leaves a Callable open
            "evergrant.EvergrantPlugin",
            interceptors=[LeaseInterceptor(self._open_clients)],
            activities=_added_once(EnsureActivity(on_consent_required).ensure),
        )
        self._connect = lambda: WorkerClients(
            AsyncEvergrant(url, api_key, **options), Evergrant(url, api_key, **options)
        )
        self._clients: WorkerClients | None = None
        self._running = 0

    def configure_worker(self, config: WorkerConfig) -> WorkerConfig:
        configured = super().configure_worker(config)
        if "interceptors" in configured:
            configured["interceptors"] = list(dict.fromkeys(configured["interceptors"]))
        return configured

    async def run_worker(self, worker: Worker, next: Callable[[Worker], Awaitable[None]]) -> None:
        """Keep the clients open while any worker runs. Raises BadRequest for missing settings."""
        if self._clients is None:
            self._clients = self._connect()
        self._running += 1
        try:
            await super().run_worker(worker, next)
        finally:
            self._running -= 1
            if self._running == 0:
                await self._close()

    async def _close(self) -> None:
        clients, self._clients = self._open_clients(), None
        clients.blocking.close()
        await clients.asyncio.aclose()

    def _open_clients(self) -> WorkerClients:
        if self._clients is None:
            raise RuntimeError("the worker of this activity isn't running")
        return self._clients


def _added_once(ours: Callable[..., Any]) -> Callable[[Sequence[Callable[..., Any]] | None], list[Any]]:
    """A worker's activities with ours, unless the plugin of its client has added it already."""

    def added(theirs: Sequence[Callable[..., Any]] | None) -> list[Any]:
        activities = list(theirs or ())
        return activities if ours in activities else [*activities, ours]

    return added


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


def _refuse_secrets(place: str, values: tuple[Any, ...], leases: ActivityLeases) -> None:
    """Raises a failure that is not retried, and doesn't quote the secret."""
    if not leases.secrets:
        return
    if any(isinstance(value, Lease) for value in values):
        raise _refusal(place)
    try:
        payloads: list[Payload] = activity.payload_converter().to_payloads(values)
    except LeaseLeak:
        raise _refusal(place) from None
    if any(contains_secret(payload.SerializeToString(), leases.secrets) for payload in payloads):
        raise _refusal(place)


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


def _refusal(place: str) -> ApplicationError:
    return ApplicationError(
        f"the activity's {place} holds a leased token; return facts, and lease where the token is used",
        type=f"TokenIn{place.capitalize()}",
        non_retryable=True,
    )


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
