"""The beginning of a run whose input can't be read."""

import functools
from collections.abc import Callable
from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages.received import is_received


def init(method: Callable[..., None]) -> Callable[..., None]:
    """As `workflow.init`, for an `__init__` that is called only with an input that can be read.

    Without it the instance stays empty, and the worker's interceptor fails the run: an `__init__` that raised
    would leave the SDK's coroutine of the run behind.
    """

    @functools.wraps(method)
    def checked(self: Any, *received: Any) -> None:
        if is_received(received):
            method(self, *received)

    return workflow.init(checked)
