"""A definition's way in: checks by machine, an admin's decision, then stages that are watched."""

from contextlib import suppress
from datetime import timedelta
from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core import onboarding as m
    from evergrant_server.core.definition import DefinitionState
    from evergrant_server.core.messages import Provenance
    from workflows import calls

_TIME_TO_DECIDE = timedelta(days=30)


@workflow.defn(name=m.ONBOARDING_WORKFLOW)
class OnboardingWorkflow:
    """What is proposed, found and decided is in the store; the order of it is here."""

    @workflow.init
    def __init__(self, start: m.OnboardingStart) -> None:
        self._start = start
        self._asked = start.asked  # by whoever moved it last
        self._decided = False
        self._roll_back: str | None = None

    @workflow.run
    async def run(self, start: m.OnboardingStart) -> m.Onboarded:
        news = await calls.check_definition(m.DefinitionCall(**self._call()))
        if news.state is DefinitionState.WAITING:
            self._decided = self._decided or news.decided  # this run may follow one that was ended
            news = await self._decision()
        while news.state is DefinitionState.STAGED:
            news = await self._stage(news)
        return m.Onboarded(state=news.state)

    async def _decision(self) -> m.DefinitionNews:
        overdue = False
        workflow.set_current_details("an admin decides")
        try:
            await workflow.wait_condition(
                lambda: self._decided, timeout=_TIME_TO_DECIDE, timeout_summary="nobody decided"
            )
        except TimeoutError:
            overdue = True
        return await calls.decide_definition(m.DefinitionCall(**self._call(), overdue=overdue))

    async def _stage(self, news: m.DefinitionNews) -> m.DefinitionNews:
        seen = f"{news.good} refreshes worked, {news.bad} only as before"
        held = " (no evidence yet: it is held)" if news.look_s is not None else ""
        workflow.set_current_details(f"serves {news.share:.0%} of the connections: {seen}{held}")
        with suppress(TimeoutError):  # nobody wants it back: the counts decide
            await workflow.wait_condition(
                lambda: self._roll_back is not None,
                timeout=news.look_s or self._start.watch_s,
                timeout_summary="look at the stage",
            )
        return await calls.watch_definition(m.DefinitionCall(**self._call(), roll_back=self._roll_back))

    @workflow.signal(name=m.SIGNAL_DECIDED)
    def decided(self, it: m.Decided) -> None:
        self._decided, self._asked = True, it.asked

    @workflow.signal(name=m.SIGNAL_ROLL_BACK)
    def roll_back(self, it: m.RollBack) -> None:
        self._roll_back, self._asked = it.reason, it.asked

    def _call(self) -> dict[str, Any]:
        info = workflow.info()
        return {
            "tenant": self._start.tenant,
            "definition_id": self._start.definition_id,
            "asked": self._asked,
            "provenance": Provenance(
                workflow_id=info.workflow_id,
                run_id=info.run_id,
                event_id=info.get_current_history_length(),
            ),
        }
