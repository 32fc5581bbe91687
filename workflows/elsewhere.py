"""One pass that asks providers whether grants still live."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.upkeep import LOOK_ELSEWHERE_WORKFLOW, LookedElsewhere, LookElsewhere
    from workflows import calls


@workflow.defn(name=LOOK_ELSEWHERE_WORKFLOW)
class LookElsewhereWorkflow:
    """Started by a schedule; knows counts alone."""

    @workflow.run
    async def run(self, order: LookElsewhere) -> LookedElsewhere:
        return await calls.look_elsewhere(order)
