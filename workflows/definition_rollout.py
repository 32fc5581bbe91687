"""A definition's way in: checks by machine, an admin's decision, then stages that are watched."""

from contextlib import suppress
from datetime import timedelta
from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.definition import DefinitionState
    from evergrant_server.core.messages import definition_rollout as m
    from evergrant_server.core.messages.connection import Provenance
    from workflows import activity_calls

_TIME_TO_DECIDE = timedelta(days=30)


@workflow.defn(name=m.DEFINITION_ROLLOUT_WORKFLOW)
class DefinitionRolloutWorkflow:
    """What is proposed, found and decided is in the store; the order of it is here."""

    @workflow.init
    def __init__(self, start: m.RolloutStart) -> None:
        self._start = start
        self._asked = start.context  # by whoever moved it last
        self._decided = False
        self._roll_back: str | None = None

    @workflow.run
    async def run(self, start: m.RolloutStart) -> m.RolloutResult:
        news = await activity_calls.check_definition(m.DefinitionCall(**self._call()))
        if news.state is DefinitionState.WAITING:
            self._decided = self._decided or news.decided  # this run may follow one that was ended
            news = await self._decision()
        while news.state is DefinitionState.STAGED:
            news = await self._stage(news)
        return m.RolloutResult(state=news.state)

    async def _decision(self) -> m.DefinitionResult:
        overdue = False
        workflow.set_current_details("an admin decides")
        try:
            await workflow.wait_condition(
                lambda: self._decided, timeout=_TIME_TO_DECIDE, timeout_summary="nobody decided"
            )
        except TimeoutError:
            overdue = True
        return await activity_calls.decide_definition(m.DefinitionCall(**self._call(), overdue=overdue))

    async def _stage(self, news: m.DefinitionResult) -> m.DefinitionResult:
        seen = f"{news.good} refreshes worked, {news.bad} only as before"
        held = " (no evidence yet: it is held)" if news.next_check_s is not None else ""
        workflow.set_current_details(f"serves {news.share:.0%} of the connections: {seen}{held}")
        with suppress(TimeoutError):  # nobody wants it back: the counts decide
            await workflow.wait_condition(
                lambda: self._roll_back is not None,
                timeout=news.next_check_s or self._start.check_interval_s,
                timeout_summary="look at the stage",
            )
        return await activity_calls.watch_definition(
            m.DefinitionCall(**self._call(), roll_back=self._roll_back)
        )

    @workflow.signal(name=m.SIGNAL_DEFINITION_DECIDED)
    def decided(self, it: m.DefinitionDecided) -> None:
        self._decided, self._asked = True, it.context

    @workflow.signal(name=m.SIGNAL_ROLL_BACK_DEFINITION)
    def roll_back(self, it: m.RollBackDefinition) -> None:
        self._roll_back, self._asked = it.reason, it.context

    def _call(self) -> dict[str, Any]:
        info = workflow.info()
        return {
            "tenant": self._start.tenant,
            "definition_id": self._start.definition_id,
            "context": self._asked,
            "provenance": Provenance(
                workflow_id=info.workflow_id,
                run_id=info.run_id,
                event_id=info.get_current_history_length(),
            ),
        }
