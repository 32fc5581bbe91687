"""The public keys of a receiver's transmitter, read and pinned."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.receivers import FETCH_KEYS_WORKFLOW, FetchKeys, KeysFetched
    from workflows import calls


@workflow.defn(name=FETCH_KEYS_WORKFLOW)
class FetchKeysWorkflow:
    """The API makes no outbound call: it asks a worker, and history says what came of it."""

    @workflow.run
    async def run(self, order: FetchKeys) -> KeysFetched:
        return await calls.fetch_keys(order)
