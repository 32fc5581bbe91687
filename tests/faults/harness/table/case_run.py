"""One case of the table: a worker, a fault at a point, and the workers that go on afterwards."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.errors import FAILURES, ErrorCode, FailureKind
from evergrant_server.core.integrations import Rotation
from evergrant_server.core.messages.activities import ExchangeCode, GrantResult, LapseConsent, RefreshGrant
from evergrant_server.core.messages.base import Provenance, RequestContext
from evergrant_server.core.messages.names import connection_workflow_id
from tests.fakes.providers.scripted_provider import hold_answer
from tests.faults.harness.database import PUBLIC_URL, TENANT, AttemptRecord, FinalState, HarnessDatabase
from tests.faults.harness.instrumentation.passages import AFTER, Fault
from tests.faults.harness.provider import StrictProvider
from tests.faults.harness.table.scenarios import CONFIRM, JOURNALLED, LAPSE, REFRESH, Scenario
from tests.faults.harness.workers import handles, limits
from tests.faults.harness.workers.handles import Answer, ForkServer, WorkerHandle, WorkerStart

_ASK_AGAIN_S, _ASK_AGAIN_AT_LAST_S = 0.08, 0.5
_REHEARSALS = 5
_LEAVES = Fault(point=JOURNALLED, side=AFTER, kind="die")
_KEPT = (JOURNALLED, AFTER)


class Layout(StrEnum):
    """Who goes on after the fault."""

    ONE = "one worker"  # the same one, or what restarts in its place
    TWO = "two, one host"  # another one, with a journal of its own in the same folder
    HOSTS = "two hosts"  # another one that sees nothing of the first one's journal


def host_of(worker: str, layout: Layout) -> str:
    """Workers of one host share the folder of their journals."""
    return "host-b" if worker == "b" and layout is Layout.HOSTS else "host-a"


@dataclass(frozen=True)
class Case:
    scenario: Scenario
    fault: Fault | None
    layout: Layout
    rotation: Rotation
    revoked: bool = False  # a revocation is written while the worker is stopped

    def __str__(self) -> str:
        fault = self.fault
        where = f"{fault.kind} {fault.side} {fault.point} ({fault.passage})" if fault else "no fault"
        more = ", revoked meanwhile" if self.revoked else ""
        return f"{self.scenario.name} | {where}{more} | {self.layout} | {self.rotation}"


@dataclass
class CaseRecord:
    """Everything that is known of a case when it is over."""

    case: Case
    reached: bool
    kept: bool  # an answer that gave something, in a journal, when the fault came (or ever, if none came)
    heard: bool  # the workflow, of a grant
    end: FinalState
    idp: StrictProvider
    passed: list[tuple[str, str, float]]
    proof: GrantResult | None = None  # one more refresh, when the store calls the connection active
    hung: bool = False
    took_s: float = 0.0
    raised: list[str] = field(default_factory=list)
    error: str = ""
    attempts: tuple[AttemptRecord, ...] = ()
    journals: dict[str, str] = field(default_factory=dict)  # worker -> its journal
    entries: set[tuple[str, float]] = field(default_factory=set)  # worker, and when it had kept an answer
    revoked: bool = False  # a revocation was written: the point of a case that revokes was reached


class CaseRun:
    """Carries out one case."""

    def __init__(
        self, case: Case, ground: HarnessDatabase, warm: ForkServer, folder: Path, idp: StrictProvider
    ) -> None:
        self._case, self._ground, self._warm, self._idp = case, ground, warm, idp
        self._folder = folder
        self._hands: list[WorkerHandle] = []
        self._names: dict[WorkerHandle, str] = {}
        self._entries: set[tuple[str, float]] = set()
        self._raised: list[str] = []
        self._again: WorkerHandle | None = None  # the first worker, started again
        self._left_stopped: tuple[WorkerHandle, asyncio.Task[Answer]] | None = None
        self._kept = case.scenario.begins_answered
        self._heard = self._crossed = self._revoked = False
        self._passed: list[tuple[str, str, float]] = []
        self.first: list[tuple[str, str, float]] = []  # of them by the first worker, until its answer
        self._until = time.monotonic() + limits.CASE_S

    async def run(self) -> CaseRecord:
        began = time.monotonic()
        hung, reached, proof, journals = False, False, None, {}
        self._connection, self._consent, self._order = await self._prepare()
        try:
            async with asyncio.timeout(limits.CASE_S + 3):
                reached = await self._happen()
                now = await self._ground.row(self._connection.id)
                if now.state is LifecycleState.ACTIVE:
                    proof = await self._prove(now)
        except TimeoutError:
            hung = True
        finally:
            for hand, name in self._names.items():
                journals[name] = hand.journal
                self._entries |= {(name, at) for at in hand.kept()}
            await asyncio.gather(*(self._warm.back(hand) for hand in self._hands))
        end = await self._ground.end(self._connection.id, self._consent)
        took = time.monotonic() - began
        return CaseRecord(
            self._case, reached, self._kept, self._heard, end, self._idp, self._passed, proof, hung, took,
            self._raised, attempts=await self._ground.attempts(self._connection.id), journals=journals,
            entries=self._entries, revoked=self._revoked,
        )  # fmt: skip

    async def rehearse(self, hand: WorkerHandle | None) -> WorkerHandle:
        """Until it is done without any fault; keeps the worker. The first time may be too slow."""
        hand = hand or await self._hand("rehearsal")
        for _ in range(_REHEARSALS):
            self._connection, self._consent, self._order = await self._prepare()
            answer = await hand.ask(self._case.scenario.flow, self._order)
            if answer.news is not None and GrantResult.model_validate(answer.news).failure is None:
                return hand
        raise RuntimeError(f"without any fault: {answer}")

    # --- before -------------------------------------------------------------------------

    async def _prepare(self) -> tuple[Connection, Consent | None, Any]:
        scenario, ground, idp, consent, code = self._case.scenario, self._ground, self._idp, None, ""
        async with ground.store.write() as tx:
            integration = await ground.integration(
                tx, idp, self._case.rotation, scenario.provider, scenario.secrets
            )
            connection = await ground.connection(tx, integration)
            if scenario.flow == REFRESH:
                connection = await ground.granted(tx, connection, idp, scenario.refreshable, scenario.recurs)
        if scenario.flow != REFRESH:
            consent = await ground.consent(idp, integration, connection, started=scenario.started)
            if scenario.flow in (CONFIRM, LAPSE):
                consent, code = await ground.returned(consent, late=scenario.late)
        if scenario.leased:
            await self._ground.leased(connection)
        self._idp.script(*scenario.answers(self._case.rotation))
        call: dict[str, Any] = {
            "tenant": TENANT,
            "connection_id": connection.id,
            "context": RequestContext(by="harness"),
            "provenance": Provenance(
                workflow_id=connection_workflow_id(TENANT, connection.id), run_id="r", event_id=1
            ),
        }  # fmt: skip
        if consent is not None:
            return connection, consent, self._consent_order(call, consent, code)
        order = RefreshGrant(**call, generation=connection.generation, **scenario.requested)
        return connection, None, order

    def _consent_order(self, call: dict[str, Any], consent: Consent, code: str) -> Any:
        if (scenario := self._case.scenario).flow == LAPSE:
            return LapseConsent(**call, consent_id=consent.id)
        if scenario.flow == CONFIRM:
            call |= {"app_id": consent.app_id, "code": code, "subject": scenario.subject}
            return handles.ConfirmAndExchange(**call, consent_id=consent.id, generation=0)
        return ExchangeCode(**call, consent_id=consent.id, generation=0)

    async def _hand(self, name: str, *plan: Fault) -> WorkerHandle:
        journals = self._folder / host_of(name, self._case.layout) / "journals"
        journals.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        start = WorkerStart(
            name=name,
            database_url=self._ground.url,
            key_file=self._ground.key_file,
            journals=journals,
            allow=self._idp.allowance,
            public_url=PUBLIC_URL,
            plan=list(plan),
            queued=self._case.scenario.queued and name == "a",
            sweeps_after_s=self._sweeps_after_s(name),
            repaired_after_s=limits.REPAIRED_S if self._case.scenario.unread else 0.0,
            patient=name == "proof",
        )
        hand = await self._warm.hand(start)
        self._hands.append(hand)
        self._names[hand] = name
        return hand

    def _sweeps_after_s(self, name: str) -> float:
        """The first worker is to find what was left, and not the other one before it."""
        if name == "a" and self._case.scenario.sweeps_late:
            return limits.SWEEP_LATE_S
        return limits.SWEEP_SECOND_S if name == "b" and self._case.scenario.replayed else 0.0

    # --- the case itself ----------------------------------------------------------------

    async def _happen(self) -> bool:
        """Run it to an outcome; says whether the fault's point was reached."""
        case, scenario = self._case, self._case.scenario
        plan = [*scenario.faults, *([case.fault] if case.fault else [])]
        leaves = await self._hand("zero", scenario.leaves or _LEAVES) if scenario.replayed else None
        if leaves is not None and not scenario.neighbour and not await self._leave_an_answer(leaves):
            return False
        first = self._first = await self._hand("a", *plan)
        if leaves is not None and scenario.neighbour and not await self._leave_an_answer(leaves):
            return False
        other = None if case.layout is Layout.ONE else await self._hand("b")
        if not scenario.refreshable:
            await asyncio.sleep(limits.TOKEN_S)
        gate = asyncio.Event()
        if scenario.held:
            self._idp.script(hold_answer(gate))
        answer = None
        while answer is None or not self._over(first, answer):
            answering = asyncio.create_task(first.ask(scenario.flow, self._order))
            first_time = scenario.held and not gate.is_set()
            ending = asyncio.create_task(self._shut_down(first, gate)) if first_time else None
            await self._until_over(first, other, answering)
            if ending is not None:
                await self._until_over(first, other, ending)
            if answer is not None:
                await _a_moment(answer)
            answer = await answering
            self._note(answer, first, first=True)
        if not first.stopped.locked():  # by what it does between two answers
            await self._paused(first, other)
        if answer.died:
            await first.gone.wait()
        known = None if other or first.gone.is_set() else answer  # started again, it is asked again
        outcome = asyncio.create_task(self._until_outcome(other or first, known))
        await self._until_over(first, None, outcome)  # its scenario's own stop may come now
        await outcome
        if self._left_stopped is not None:
            self._left_stopped[0].resume()
            await self._left_stopped[1]
        if case.fault is None:
            return True
        reached = first.was_struck_by(case.fault)
        kept, by = (first.kept_at(case.fault), "a") if reached else (self._journalled(), None)
        self._kept |= any(self._idp.gave(at, by) for at in kept)
        return reached

    def _journalled(self) -> list[float]:
        """When answers were put into journals, by workers that told of it: all of them, when none died."""
        return [at for point, side, at in self._passed if (point, side) == _KEPT]

    def _over(self, first: WorkerHandle, answer: Answer) -> bool:
        """The first worker is asked until its fault has struck, or Temporal would not ask again."""
        fault = self._case.fault
        struck = fault is not None and first.was_struck_by(fault)
        return answer.died or struck or ended(self._case.scenario, answer) or time.monotonic() > self._until

    async def _leave_an_answer(self, dies: WorkerHandle) -> bool:
        """A worker dies between its journal's fsync and the commit. False when a busy machine let a limit
        pass before it got there."""
        asked = asyncio.create_task(dies.ask(self._case.scenario.flow, self._order))
        stopped = asyncio.create_task(dies.stopped.acquire())
        await asyncio.wait({asked, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if asked.done():
            stopped.cancel()
            if asked.result().died:
                await dies.gone.wait()
            return asked.result().died
        self._left_stopped = dies, asked
        return True

    async def _shut_down(self, first: WorkerHandle, gate: asyncio.Event) -> None:
        """The worker ends while the provider still thinks: the section is let come to its end."""
        with contextlib.suppress(TimeoutError):
            await self._idp.until("token", 1, timeout=2)
        draining = asyncio.create_task(first.ask("drain", self._order))
        draining.add_done_callback(lambda done: self._note(done.result(), first, first=True))
        await asyncio.sleep(limits.HTTP_S / 5)
        gate.set()
        if self._case.scenario.ends:
            await asyncio.wait({draining})
            await first.end()

    async def _until_over(
        self, first: WorkerHandle, other: WorkerHandle | None, answering: asyncio.Task[Any]
    ) -> None:
        """Until the first worker has answered or died; stopped, it is let go on after every deadline."""
        while True:
            stopped = asyncio.create_task(first.stopped.acquire())
            await asyncio.wait({answering, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not stopped.done():
                stopped.cancel()
                return
            await self._paused(first, other, answering)

    async def _paused(
        self, first: WorkerHandle, other: WorkerHandle | None, answering: asyncio.Task[Any] | None = None
    ) -> None:
        pause_s = limits.MOMENT_S if self._case.revoked else limits.PAUSE_S
        pause = asyncio.create_task(asyncio.sleep(pause_s))
        if self._case.revoked:
            await self._ground.revoke(self._connection)
            self._revoked = True
        elif other is not None and self._case.scenario.crosses and not self._crossed:
            self._crossed = True
            pause.cancel()
            return await self._crossing(first, other, answering)
        elif other is not None:
            await self._until_outcome(other, give_up_after=pause_s)
        await pause
        first.resume()

    async def _crossing(
        self, first: WorkerHandle, other: WorkerHandle, answering: asyncio.Task[Any] | None
    ) -> None:
        """It goes on while the other one's use of the same credential is under way."""
        gate, crosses = asyncio.Event(), self._case.scenario.crosses
        assert crosses is not None
        self._idp.script(crosses(gate))
        going_on = asyncio.create_task(self._until_outcome(other, give_up_after=limits.PAUSE_S))
        count = self._idp.count("token") + 1
        sent = asyncio.create_task(self._idp.until("token", count, timeout=limits.CASE_S))
        await asyncio.wait({going_on, sent}, return_when=asyncio.FIRST_COMPLETED)
        sent.cancel()
        first.resume()
        if answering is not None:
            await asyncio.wait({answering}, timeout=limits.HTTP_S / 2)
        gate.set()
        await going_on

    async def _until_outcome(
        self, hand: WorkerHandle, answer: Answer | None = None, *, give_up_after: float | None = None
    ) -> None:
        """What Temporal and the workflow do: ask again until an answer ends it."""
        until = min(self._until, time.monotonic() + (give_up_after or limits.CASE_S))
        while answer is None or not ended(self._case.scenario, answer):
            if time.monotonic() > until:
                if give_up_after is None:
                    raise TimeoutError
                return
            if answer is not None:
                await _a_moment(answer)
            hand = await self._restarted(hand)
            answer = await hand.ask(self._case.scenario.flow, self._order)
            self._note(answer, hand)

    async def _restarted(self, hand: WorkerHandle) -> WorkerHandle:
        """The first worker is started again once it is gone: its sweep may meet the fault by itself."""
        if self._first.gone.is_set() and self._again is None:
            self._again = await self._hand("a2")
        return self._again if self._again and hand is self._first else hand

    async def _prove(self, connection: Connection) -> GrantResult:
        """The connection works: it can be refreshed once more, by a worker without a fault."""
        hand = await self._hand("proof")
        order = RefreshGrant(**self._order.model_dump(include=_CALL), generation=connection.generation)
        until = time.monotonic() + limits.CASE_S / 2
        while True:
            answer = await hand.ask(REFRESH, order)
            if answer.news is not None:
                news = GrantResult.model_validate(answer.news)
                waits = _transient(news.failure) or not ended(self._case.scenario, answer)
                if not waits or time.monotonic() > until:
                    return news
            await _a_moment(answer)

    def _note(self, answer: Answer, by: WorkerHandle, *, first: bool = False) -> None:
        self._passed += answer.passed
        self._entries |= {(self._names[by], at) for it, side, at in answer.passed if (it, side) == _KEPT}
        self.first += answer.passed if first else []
        self._raised += [answer.raised] if answer.raised else []
        self._heard |= answer.news is not None and GrantResult.model_validate(answer.news).failure is None


_CALL = {"tenant", "connection_id", "context", "provenance"}


def ended(scenario: Scenario, answer: Answer) -> bool:
    """True when neither Temporal nor the workflow would ask again."""
    if answer.news is None:
        return False
    failure = GrantResult.model_validate(answer.news).failure
    unread = scenario.unread and failure is ErrorCode.REPLY_UNREADABLE
    return not unread and (scenario.flow != REFRESH or not _transient(failure))


async def _a_moment(answer: Answer) -> None:
    """As long as the answer says, as the workflow waits."""
    told = (answer.news or {}).get("retry_after") or 0.0
    await asyncio.sleep(min(max(told, _ASK_AGAIN_S), _ASK_AGAIN_AT_LAST_S))


def _transient(failure: ErrorCode | None) -> bool:
    waits = (FailureKind.PROVIDER_UNAVAILABLE, FailureKind.PLATFORM_UNAVAILABLE)
    return failure is not None and FAILURES[failure].kind in waits
