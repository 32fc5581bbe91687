"""Failures of sending a request: whether any byte of it was sent, and why it was stopped."""

from collections.abc import Callable

import httpx2

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.egress import BeforeSend
from providers.definition.schema import ProviderSpec


class SendFailed(Failure):
    """No reply was received. `sent` is False only when certainly no byte of the request was sent."""

    def __init__(self, failure: Failure, *, sent: bool) -> None:
        super().__init__(failure.code, failure.detail, retry_after=failure.retry_after, **failure.context)
        self.failure = failure
        self.sent = sent


class SendStopped(Exception):
    """An exception of `before_send`, on its way through authlib."""

    def __init__(self, failure: Failure) -> None:
        super().__init__("stopped before sending")
        self.failure = failure


def stop_on_failure(before_send: BeforeSend | None) -> BeforeSend | None:
    if before_send is None:
        return None

    def check() -> Callable[[], None] | None:
        try:
            return before_send()
        except Failure as failure:
            raise SendStopped(failure) from failure
        except Exception as error:
            detail = "the request was stopped before sending"
            raise SendStopped(Failure(ErrorCode.PROVIDER_UNREACHABLE, detail)) from error

    return check


def unreachable_failure(spec: ProviderSpec, error: httpx2.TransportError) -> Failure:
    """The failure with the kind of error only, since the error's text may quote a URL."""
    timed_out = isinstance(error, httpx2.TimeoutException)
    kind = "did not reply in time" if timed_out else f"could not be reached ({type(error).__name__})"
    return Failure(ErrorCode.PROVIDER_UNREACHABLE, f"{spec.name} {kind}", provider=spec.name)
