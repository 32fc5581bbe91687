"""`token_ready` signals to the workflows that requested a token, sent side by side.

The one that is gone takes Temporal's server as long as any other: sent one after the other, replies to
hundreds of them would hold up the connection's next event.
"""

import asyncio

from temporalio import workflow
from temporalio.exceptions import FailureError

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages.connection import TokenReady
    from evergrant_server.core.messages.names import SignalName

_MOST_AT_ONCE = 100  # Temporal's own limit for a run is 2,000


class Replies:
    """The replies of one run that Temporal hasn't confirmed yet."""

    def __init__(self) -> None:
        self._sending: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def send(self, workflow_id: str, message: TokenReady) -> None:
        """Begin to send it. The same reply to the same workflow, if it is still under way, is sent once."""
        key = (workflow_id, message.model_dump_json())
        if key in self._sending:
            return
        await workflow.wait_condition(lambda: len(self._sending) < _MOST_AT_ONCE)
        self._sending[key] = asyncio.create_task(self._send(key, message))

    @property
    def under_way(self) -> bool:
        return bool(self._sending)

    async def finish(self) -> None:
        """Wait until each is delivered, or its workflow is gone."""
        await workflow.wait_condition(lambda: not self._sending)

    async def _send(self, key: tuple[str, str], message: TokenReady) -> None:
        try:
            await send_token_ready(key[0], message)
        finally:
            del self._sending[key]


async def send_token_ready(workflow_id: str, message: TokenReady) -> None:
    try:
        await workflow.get_external_workflow_handle(workflow_id).signal(SignalName.TOKEN_READY, message)
    except FailureError:
        workflow.logger.warning("the workflow that requested a token is gone")
