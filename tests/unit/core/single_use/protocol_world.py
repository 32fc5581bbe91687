"""A world for the protocol's rules: two hosts, three workers, one connection, one provider.

What decides is the real thing (`decide_attempt`, `with_earlier_sends`, `outcome_of_error`); the
world supplies what the decisions are about: processes that stop and die at every step, answers
that get lost, journals that only their host can see, time. A `Rules` without one of its rules
is a protocol without it, which the model must be able to refute.
"""

from datetime import timedelta

from evergrant_server.core.ids import AttemptId, ConnectionId, Tenant
from evergrant_server.core.single_use import attempt as protocol
from evergrant_server.core.single_use.attempt import (
    Attempt,
    AttemptKind,
    AttemptOutcome,
    ResendDecision,
    outcome_of_error,
    with_earlier_sends,
)
from tests.unit.core.single_use.protocol_parts import LIMITS, UNKNOWN, Answer, Section, Sight, Stage, Worker


class World(Sight):
    """Everything, with a step for whatever can happen. Violations are assertions."""

    # --- what a worker does -------------------------------------------------------------

    def begin(self, name: str) -> None:
        """A refresh is asked of this worker."""
        worker = self.workers[name]
        if not worker.alive or worker.paused or worker.section is not None:
            return
        verifies = not self.active and self.late is not None
        if not self.active and not verifies:
            return
        wanted = Attempt(
            tenant=Tenant("t"),
            id=AttemptId(f"att_{len(self.attempts)}"),
            connection_id=ConnectionId("con_1"),
            kind=AttemptKind.LATE_TOKENS if verifies else AttemptKind.REFRESH,
            credential=f"late {self.late.token}" if verifies and self.late else "",
            from_generation=self.generation,
            journal_id=name,
            opened_at=self.now,
            send_by=self.now + LIMITS.send,
        )
        opened = next((it for it in self.attempts if it.outcome is None), None)
        if opened is not None and self.rules.unsent and self._never_sent(worker, opened):
            self._close(opened, AttemptOutcome.NOT_SENT)
            opened = None
        unknown = self._unknown(wanted)
        if self.rules.defers and self._came_late(worker, wanted, unknown):
            return
        verdict = self._decide(worker, wanted, opened, unknown)
        if verdict is ResendDecision.WAIT:
            return
        if opened is not None and self._out_of_reach(worker, opened):
            self.out_of_reach = True
        if verdict is ResendDecision.GIVE_UP:
            self._given_up(opened, verifies)
            return
        if opened is not None:
            if not self._fence(worker, opened):
                return
            self._close(opened, AttemptOutcome.SUPERSEDED)
            self._look_for_answers(worker, opened)
        wanted = with_earlier_sends(wanted, unknown) if self.rules.counts else wanted
        self.attempts.append(wanted)
        token = self.late.token if verifies and self.late and self.late.token else self.token
        worker.section = Section(wanted, token, verifies=verifies)
        self.rotates = False

    def step(self, name: str) -> None:
        """The next await point of its section."""
        worker = self.workers[name]
        section = worker.section
        if section is None or worker.paused or not worker.alive:
            return
        match section.stage:
            case Stage.INTENDED:
                too_late = self.now > section.attempt.send_by
                if (self.rules.send_by and too_late) or section.fenced:
                    self._close(section.attempt, AttemptOutcome.NOT_SENT)
                    worker.section = None
                else:
                    section.stage, section.checked_at = Stage.CHECKED, self.generation
            case Stage.CHECKED:
                self._write(worker, section)
            case Stage.WRITTEN:
                section.stage = Stage.ANSWERED
            case Stage.ANSWERED:
                if self.rules.journal and section.answer is not None:
                    worker.entries.append((section, section.answer))
                section.stage = Stage.KEPT
            case Stage.KEPT:
                assert section.answer is not None
                if self._commit(worker, section, section.answer):
                    worker.entries = [it for it in worker.entries if it[0] is not section]
                worker.section = None

    def replay(self, name: str) -> None:
        """Its own entries, those of the dead on its host, and those of a living one that doesn't get on;
        who goes on later commits the same answer once more."""
        worker = self.workers[name]
        if not worker.alive or worker.paused:
            return
        for other in self._on_host(worker):
            for section, answer in list(other.entries):
                idle = other is not worker or section is not other.section
                if idle and self._commit(worker, section, answer):
                    other.entries.remove((section, answer))

    # --- what befalls it ----------------------------------------------------------------

    def pause(self, name: str) -> None:
        worker = self.workers[name]
        if worker.alive:
            worker.paused = True

    def resume(self, name: str) -> None:
        self.workers[name].paused = False

    def kill(self, name: str) -> None:
        worker = self.workers[name]
        section = worker.section
        if section is not None and section.stage in (Stage.WRITTEN, Stage.ANSWERED):
            self._died(section)
        if section is not None and section.stage is Stage.INTENDED:
            worker.rooms.append(section)
        if section is not None and section.stage is Stage.CHECKED:
            self.answer_died = True  # in the instant of sending: nobody can say whether it was sent
        worker.alive, worker.paused, worker.section = False, False, None

    def restart(self, name: str) -> None:
        self.workers[name].alive = True

    def lose_answer(self, name: str) -> None:
        """The network takes it, after the provider acted."""
        worker = self.workers[name]
        section = worker.section
        if section is not None and section.stage is Stage.WRITTEN and not worker.paused and worker.alive:
            self._died(section)
            worker.section = None

    def fail(self, name: str, status: int) -> None:
        """An error instead of an answer: the provider did nothing, or acted and failed then."""
        if outcome_of_error(status) is None:  # only those that say nothing are worth a world of their own
            self.lose_answer(name)

    def wait(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        for worker in self.workers.values():
            if worker.section is not None and worker.section.stage is Stage.CHECKED:
                worker.section.stopped_in_window = True

    # --- the world's own ----------------------------------------------------------------

    def _write(self, worker: Worker, section: Section) -> None:
        token = section.token
        harmless = self.refresh_rules.resend_is_safe_for is not None  # the provider takes it again
        taken_over = self._current(section.attempt).outcome is AttemptOutcome.SUPERSEDED
        if taken_over and not harmless:
            assert section.stopped_in_window, "sent after a takeover, outside the window"
            by = self.attempts[self.attempts.index(self._current(section.attempt)) + 1]
            assert self.workers[by.journal_id].host != worker.host, "two uses on one host"
        # inside a grace another host may have brought and spent the successor since the check
        overtaken = harmless and self.generation > section.checked_at
        self.windows += taken_over and (section.stopped_in_window or overtaken)
        for other in self._on_host(worker):
            flying = other.section
            busy = flying is not None and flying is not section and flying.stage is Stage.WRITTEN
            if (
                busy
                and not harmless
                and flying
                and flying.token == token
                and other.alive
                and flying.written_at
            ):
                late = self.now >= flying.attempt.send_by + LIMITS.answer
                assert late, "two uses in flight on one host"
        self.writes[token] = self.writes.get(token, 0) + 1
        if not harmless:
            assert self.writes[token] <= protocol.MAX_SENDS + self.windows, "sent more than once more"
        section.written_at = self.now
        section.stage = Stage.WRITTEN
        section.answer = self.provider.use(token, self.now)
        assert section.answer is not None

    def _commit(self, worker: Worker, section: Section, answer: Answer) -> bool:
        """False when it has to wait."""
        attempt = self._current(section.attempt)
        still = self.generation == attempt.from_generation
        installs = answer.token is not None and still and self.active and not section.verifies
        if installs and self._waits_for_another(worker, attempt):
            return False
        if answer.token is None:
            self._refused(worker, section, attempt, still)
        elif section.verifies:
            if still or not self.rules.compare:
                self._install(answer)
            self._close(attempt, AttemptOutcome.INSTALLED)
        elif self.rules.compare and not still:
            self._close(attempt, AttemptOutcome.SUPERSEDED)
        elif self.active or not self.rules.verifies or not self.rules.compare:
            self.rotates = self.active and self._may_have_been_ended(worker, attempt)
            self.installed_on = worker.host
            self._install(answer)
            self._close(attempt, AttemptOutcome.INSTALLED)
        else:
            self.late = answer
            self._close(attempt, AttemptOutcome.SUPERSEDED)
        return True

    def _refused(self, worker: Worker, section: Section, attempt: Attempt, still: bool) -> None:
        self._close(attempt, AttemptOutcome.REFUSED)
        if section.verifies:
            self.late = None
        elif still or not self.rules.compare:
            self.active = False
        elif self.active and worker.host != self.installed_on:  # who installed couldn't see this use
            self.rotates |= attempt.sends > 1 or attempt.outcome is AttemptOutcome.SUPERSEDED

    def _install(self, answer: Answer) -> None:
        assert answer.token is not None
        assert answer.access_until is not None
        self.token, self.generation, self.active = answer.token, self.generation + 1, True
        self.access_until = answer.access_until
        self.late = None

    def _given_up(self, opened: Attempt | None, verifies: bool) -> None:
        if opened is not None:
            self._close(opened, AttemptOutcome.GIVEN_UP)
        if verifies:
            self.late = None
        else:
            self.active = False

    def _look_for_answers(self, worker: Worker, opened: Attempt) -> None:
        """Nobody sends again what lies answered within his reach."""
        owner = self.workers[opened.journal_id]
        kept = any(it[0].attempt.id == opened.id for it in owner.entries)
        near = owner.host == worker.host
        assert not (near and kept), "sent again although the answer lay in a journal of this host"

    def _died(self, section: Section) -> None:
        if section.answer is not None and section.answer.token is not None:
            self.answer_died = True

    # --- what must hold -----------------------------------------------------------------

    def check(self) -> None:
        """At every moment."""
        quiet = all(it.section is None and not it.entries for it in self.workers.values())
        now = [it for it in self.attempts if it.from_generation == self.generation]
        known = not any(it.outcome in UNKNOWN for it in now)  # else another use finds out
        if quiet and self.active and known and not self.rotates:
            usable = self.provider.accepts(self.token, self.now)
            assert usable or self.windows, "called active, and the provider knows it dead"

    def settle(self) -> None:
        """Once faults stop, every attempt ends, and what the provider still honours is held."""
        for name in self.workers:
            self.resume(name)
            self.restart(name)
        for _ in range(60):
            for name in self.workers:
                for _ in Stage:
                    self.step(name)
                self.replay(name)
            wanted = self.late is not None or (
                self.active and (self.rotates or self.now >= self.access_until)
            )
            waits = any(it.entries for it in self.workers.values())
            if not wanted and not waits and (self._pending() is None or not self.active):
                break
            for name in self.workers:
                self.begin(name)
            if not any(it.section for it in self.workers.values()):
                self.wait(20)
        # a connection that was given up has no use for one: the next consent, or a revocation, ends it
        assert self._pending() is None or not self.active, "an attempt never ended"
        assert all(it.section is None and not it.entries for it in self.workers.values()), "stuck"
        assert self.late is None, "a late answer was forgotten"
        if not self.active:
            assert self._excused() or self.windows, "lost, though no answer had died"

    def _excused(self) -> bool:
        return self.answer_died or self.out_of_reach
