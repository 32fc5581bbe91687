"""A call to Temporal, with our failures instead of its own."""

from collections.abc import Awaitable
from datetime import timedelta
from typing import TypeVar

from temporalio.client import Client, WorkflowFailureError
from temporalio.service import RPCError, RPCStatusCode

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.connection import TASK_QUEUE

T = TypeVar("T")


class WorkflowNotRunning(Exception):
    """There is no such workflow, or its run has closed: a message to it can't arrive any more."""


class TemporalCalls:
    """One namespace, through one client."""

    def __init__(self, client: Client, task_queue: str = TASK_QUEUE) -> None:
        self._client = client
        self._task_queue = task_queue

    async def ready(self) -> bool:
        """True when Temporal answers."""
        try:
            return await self._client.service_client.check_health(timeout=timedelta(seconds=2))
        except (RPCError, RuntimeError):
            return False

    async def _call(self, call: Awaitable[T]) -> T:
        """Raises WorkflowGone, or Failure TEMPORAL_UNAVAILABLE."""
        try:
            return await call
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                raise WorkflowNotRunning from None
            raise temporal_unavailable(error) from None
        except WorkflowFailureError as error:  # it was not done in time, or was ended by hand
            raise temporal_unavailable(error.cause or error) from None
        except RuntimeError as error:
            raise temporal_unavailable(error) from None


def temporal_unavailable(error: BaseException) -> Failure:
    """What our callers hear of it: the kind of trouble alone, since its text may quote anything."""
    status = error.status.name if isinstance(error, RPCError) else type(error).__name__
    return Failure(ErrorCode.TEMPORAL_UNAVAILABLE, f"Temporal didn't do it: {status}", retry_after=1.0)
