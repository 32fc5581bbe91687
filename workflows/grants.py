"""Grants beside their connections' own lives: replaced ones are revoked, exported ones sealed and kept.

The tokens are in the store; the workflows know counts.
"""

from contextlib import suppress
from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.errors import ErrorCode
    from evergrant_server.core.lifecycle.schedule import NEWEST_RULES, RULES, jitter, revocation_retry_at
    from evergrant_server.core.messages import jobs
    from evergrant_server.core.messages.activities import (
        ReplacedRevocationResult,
        RevokeReplacedGrants,
        RevokeReplacedStart,
    )
    from evergrant_server.core.messages.export import (
        DeleteExport,
        ExportProgress,
        ExportResult,
        ExportStart,
        SealExportPage,
    )
    from evergrant_server.core.messages.names import SignalName, WorkflowName
    from workflows import runs

_PAGES_A_RUN = 200  # of an export: six history events each


@workflow.defn(name=WorkflowName.REPLACED_GRANTS)
class ReplacedGrantsWorkflow:
    """Revokes the replaced grants of a connection, for as long as it takes.

    It is apart from the connection's own: a provider that is slow to revoke an old grant delays no refresh of
    the new one.
    """

    @runs.init
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
            request = RevokeReplacedGrants(**call, provenance=runs.provenance())
            result = await runs.call(jobs.REVOKE_REPLACED_GRANTS, request)
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


@workflow.defn(name=WorkflowName.EXPORT)
class ExportWorkflow:
    """A worker seals page after page, then the lines wait for the admin until they expire."""

    @workflow.run
    async def run(self, start: ExportStart) -> ExportResult:
        page = start.pages
        while not (progress := await self._seal(start, page)).done:
            page += 1
            if page - start.pages >= _PAGES_A_RUN:
                workflow.continue_as_new(start.__replace__(pages=page))
        left = (start.expires_at - workflow.now()).total_seconds()
        await workflow.sleep(max(left, 0.001), summary="until the export expires")
        await runs.call(jobs.DELETE_EXPORT, DeleteExport(**_export_call(start)))
        return ExportResult(exported=progress.exported, skipped=progress.skipped)

    async def _seal(self, start: ExportStart, page: int) -> ExportProgress:
        return await runs.call(jobs.SEAL_EXPORT_PAGE, SealExportPage(**_export_call(start), page=page))


def _export_call(start: ExportStart) -> dict[str, Any]:
    """The fields of an ExportCall."""
    return {
        "tenant": start.tenant,
        "export_id": start.export_id,
        "context": start.context,
        "provenance": runs.provenance(),
    }
