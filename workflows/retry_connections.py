"""The failing connections of a changed integration or app: a worker tells them, page by page.

One workflow for each changed row. Changes that come during a walk are followed by one more walk,
however many they are. The connections are in the store; history has the counts.
"""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages.integrations import RetryConnections, RetryConnectionsResult
    from evergrant_server.core.messages.names import SignalName, WorkflowName
    from workflows import activity_calls, received


@workflow.defn(name=WorkflowName.RETRY_CONNECTIONS)
class RetryConnectionsWorkflow:
    @received.init
    def __init__(self, request: RetryConnections) -> None:
        self._newest = request
        self._has_more = True

    @workflow.run
    async def run(self, request: RetryConnections) -> RetryConnectionsResult:
        result = RetryConnectionsResult()
        while self._has_more:
            if workflow.info().is_continue_as_new_suggested():
                workflow.continue_as_new(self._newest)
            self._has_more = False
            result = await activity_calls.retry_connections(self._newest)
        return result

    @workflow.signal(name=SignalName.RETRY_CONNECTIONS)
    def retry(self, signal: RetryConnections) -> None:
        if signal.id != self._newest.id:  # the one that starts a run comes as its argument too
            self._newest, self._has_more = signal, True
