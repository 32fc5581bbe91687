"""The public keys of a receiver's transmitter, read and pinned."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.provider_events.receivers import (
        FETCH_RECEIVER_KEYS_WORKFLOW,
        FetchReceiverKeys,
        ReceiverKeysResult,
    )
    from workflows import activity_calls


@workflow.defn(name=FETCH_RECEIVER_KEYS_WORKFLOW)
class FetchReceiverKeysWorkflow:
    """The API makes no outbound call: it asks a worker, and history says what came of it."""

    @workflow.run
    async def run(self, order: FetchReceiverKeys) -> ReceiverKeysResult:
        return await activity_calls.fetch_keys(order)
