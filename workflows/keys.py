"""A rotation of a tenant's keys, or of its connections': the order of the pages, pauses, and progress.

The store decides what is left to do. So a rotation that is begun a second time goes on where the first ended.
"""

from contextlib import suppress

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.key_rotation import LONGEST_HISTORY
    from evergrant_server.core.messages import keys as m
    from evergrant_server.core.messages.jobs import ADVANCE_KEY_ROTATION
    from evergrant_server.core.messages.names import QueryName, SignalName, WorkflowName
    from workflows import runs


@workflow.defn(name=WorkflowName.KEY_ROTATION)
class KeyRotationWorkflow:
    @runs.init
    def __init__(self, start: m.KeyRotationStart) -> None:
        self._start = start
        self._progress, self._paused = start.progress, start.paused

    @workflow.run
    async def run(self, start: m.KeyRotationStart) -> m.KeyRotationProgress:
        while not self._progress.done:
            self._show()
            await workflow.wait_condition(lambda: not self._paused)
            self._progress = await runs.call(ADVANCE_KEY_ROTATION, self._call())
            if self._progress.done:
                break
            if self._is_long_enough():
                workflow.continue_as_new(self.describe())
            if self._progress.wait_s:
                self._show()
                with suppress(TimeoutError):
                    await workflow.wait_condition(
                        lambda: self._paused, timeout=self._progress.wait_s, timeout_summary="the next pass"
                    )
        self._show()
        return self._progress

    @workflow.signal(name=SignalName.PAUSE_KEY_ROTATION)
    def pause(self, signal: m.PauseKeyRotation) -> None:
        self._paused = signal.paused

    @workflow.query(name=QueryName.DESCRIBE_KEY_ROTATION)
    def describe(self) -> m.KeyRotationStart:
        """What a run that continues this one would begin with."""
        return self._start.__replace__(progress=self._progress, paused=self._paused)

    def _call(self) -> m.KeyRotationCall:
        values = dict(self._start) | {"progress": self._progress, "paused": False}
        return m.KeyRotationCall(**values, provenance=runs.provenance())

    def _is_long_enough(self) -> bool:
        info = workflow.info()
        return info.is_continue_as_new_suggested() or info.get_current_history_length() >= LONGEST_HISTORY

    def _show(self) -> None:
        progress = self._progress
        step = "paused" if self._paused else progress.step or ("done" if progress.done else "begins")
        kept = f"{progress.destroyed} destroyed, {progress.kept} kept"
        lines = [
            f"- {step}: {progress.moved} of {progress.total} moved, {progress.replaced} keys new",
            f"- older keys: {progress.left} left under them, {kept}",
        ]
        workflow.set_current_details("\n".join(lines))
