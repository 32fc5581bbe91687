"""Calls to Temporal that raise our failures instead of the SDK's."""

from collections.abc import Awaitable
from typing import TypeVar

from temporalio.client import WorkflowFailureError
from temporalio.service import RPCError, RPCStatusCode

from evergrant_server.core.errors import ErrorCode, Failure

T = TypeVar("T")


class WorkflowNotRunning(Exception):
    """Temporal has no open run of this workflow, so it can't receive a message."""


async def call_temporal(call: Awaitable[T]) -> T:
    """Await a call of the SDK. Raises WorkflowNotRunning, or Failure TEMPORAL_UNAVAILABLE."""
    try:
        return await call
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise WorkflowNotRunning from None
        raise temporal_unavailable(error) from None
    except WorkflowFailureError as error:  # the workflow timed out or was terminated
        raise temporal_unavailable(error.cause or error) from None
    except RuntimeError as error:
        raise temporal_unavailable(error) from None


async def find_in_temporal(call: Awaitable[T]) -> T | None:
    """Await a call of the SDK; None when the object doesn't exist. Raises Failure TEMPORAL_UNAVAILABLE."""
    try:
        return await call_temporal(call)
    except WorkflowNotRunning:
        return None


def temporal_unavailable(error: BaseException) -> Failure:
    """The failure for our callers. It names only the kind of error: its text may quote a secret."""
    status = error.status.name if isinstance(error, RPCError) else type(error).__name__
    return Failure(ErrorCode.TEMPORAL_UNAVAILABLE, f"Temporal's answer: {status}", retry_after=1.0)
