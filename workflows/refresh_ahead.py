"""A refresh that no caller waits for gives way to one that comes before a worker has begun it."""

from collections.abc import Callable

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages.activities import GrantResult, RefreshGrant
    from workflows import activity_calls

_OVERTAKEN = "a waiting caller overtakes a refresh ahead"  # a patch's name (CONTRIBUTING.md, "Contracts")


class Overtaken(Exception):
    """The refresh ended without a result, since a caller came: another one may begin now."""


async def refresh_ahead(request: RefreshGrant, is_waited_for: Callable[[], bool]) -> GrantResult:
    """The result of the refresh, or Overtaken. Either way it has ended.

    Temporal ends at once an activity that waits in the queue or for its next try, and a worker
    finishes what it has begun, so two refreshes of a connection never run at once.
    """
    refresh = activity_calls.refresh_ahead.start(request)
    await workflow.wait_condition(lambda: refresh.done() or is_waited_for())
    if refresh.done() or not workflow.patched(_OVERTAKEN):
        return await refresh
    refresh.cancel()
    try:
        return await refresh
    except ActivityError:  # cancelled, or a try failed after which Temporal begins no other
        raise Overtaken from None
