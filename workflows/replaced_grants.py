"""The replaced grants of a connection: revoked at the provider, for as long as it takes.

One workflow for each connection that has such grants, apart from the connection's own: a provider that
is slow to revoke an old grant delays no refresh of the new one. The tokens are in the store.
"""

from contextlib import suppress

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.errors import ErrorCode
    from evergrant_server.core.lifecycle.schedule import NEWEST_RULES, RULES, jitter, revocation_retry_at
    from evergrant_server.core.messages.activities import (
        ReplacedRevocationResult,
        RevokeReplacedGrants,
        RevokeReplacedStart,
    )
    from evergrant_server.core.messages.names import SignalName, WorkflowName
    from workflows import activity_calls, received


@workflow.defn(name=WorkflowName.REPLACED_GRANTS)
class ReplacedGrantsWorkflow:
    @received.init
    def __init__(self, start: RevokeReplacedStart) -> None:
        self._start = start
        self._failures = start.failures
        self._woken = True

    @workflow.run
    async def run(self, start: RevokeReplacedStart) -> ReplacedRevocationResult:
        result = ReplacedRevocationResult()
        while self._woken:
            self._woken = False
            call = {"tenant": start.tenant, "connection_id": start.connection_id, "context": start.context}
            request = RevokeReplacedGrants(**call, provenance=activity_calls.provenance())
            result = await activity_calls.revoke_replaced_grants(request)
            if result.failure is not None:
                await self._wait(result, result.failure)
        return result

    async def _wait(self, result: ReplacedRevocationResult, code: ErrorCode) -> None:
        """Wait for the next try, or for another grant that was replaced."""
        self._failures += 1
        rules, share = RULES[NEWEST_RULES], jitter(self._start.connection_id, 0)
        now = workflow.now()
        again = revocation_retry_at(now, self._failures, code, result.retry_after, rules, share)
        with suppress(TimeoutError):
            await workflow.wait_condition(lambda: self._woken, timeout=again - now)
        self._woken = True
        if workflow.info().is_continue_as_new_suggested():
            workflow.continue_as_new(self._start.__replace__(failures=self._failures))

    @workflow.signal(name=SignalName.WAKE_REPLACED_GRANTS)
    def wake(self, signal: RevokeReplacedStart) -> None:
        self._woken = True
