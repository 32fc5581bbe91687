"""What there is in a protocol's world, and what a worker can see of it from its host."""

from dataclasses import replace
from datetime import datetime

from evergrant_server.core.integrations import RefreshRules, Rotation
from evergrant_server.core.single_use.attempt import (
    UNSEEN,
    Attempt,
    AttemptOutcome,
    AttemptStatus,
    ResendDecision,
    answer_may_come,
    decide_attempt,
    may_invalidate,
    with_earlier_sends,
)
from tests.unit.core.single_use.protocol_parts import (
    GRACE,
    LIFETIME,
    LIMITS,
    START,
    UNKNOWN,
    Answer,
    Provider,
    Rules,
    Stage,
    Worker,
)


class Sight:
    """The store's rows, and locks, rooms and entries: those of its own host alone."""

    def __init__(self, rotation: Rotation, kills: bool, rules: Rules) -> None:
        self.rules = rules
        self.now: datetime = START
        self.provider = Provider(rotation, kills)
        grace = GRACE if rotation is Rotation.GRACE else 0
        self.refresh_rules = RefreshRules(rotation=rotation, grace_s=grace)
        self.workers = {name: Worker(name, name[0]) for name in ("a1", "a2", "b1")}
        self.attempts: list[Attempt] = []
        self.active, self.generation, self.token = True, 1, 1
        self.access_until = START + LIFETIME
        self.late: Answer | None = None
        self.answer_died = False  # lost between the provider's commit and the journal's fsync
        self.out_of_reach = False  # taken over from who couldn't be asked
        self.writes: dict[int, int] = {}
        self.windows = 0

    def _decide(
        self, worker: Worker, wanted: Attempt, opened: Attempt | None, unknown: Attempt | None
    ) -> ResendDecision:
        status = self._fate(worker, opened)
        if not self.rules.waits:
            return ResendDecision.RESEND
        return decide_attempt(
            wanted,
            self.refresh_rules,
            self.now,
            opened=opened,
            unknown=unknown if self.rules.counts else None,
            token_valid=self.active and self.now < self.access_until,
            seen=replace(status, answered=status.answered and self.rules.journal_first),
            limits=LIMITS,
        )

    def _fate(self, worker: Worker, opened: Attempt | None) -> AttemptStatus:
        """What `AttemptTracker.status_of` sees."""
        if opened is None:
            return UNSEEN
        owner = self.workers[opened.journal_id]
        if owner.host != worker.host:
            return UNSEEN
        mine = owner.section is not None and owner.section.attempt.id == opened.id
        if owner is not worker and mine and self.now >= opened.send_by + LIMITS.answer:
            mine = False  # it can be fenced off
        answered = any(it[0].attempt.id == opened.id for it in owner.entries)
        return AttemptStatus(owner.alive, mine, answered)

    def _out_of_reach(self, worker: Worker, opened: Attempt) -> bool:
        """On another host, or stopped past every deadline: its outcome can't be known."""
        owner = self.workers[opened.journal_id]
        stopped = owner.section is not None and owner.section.attempt.id == opened.id
        return owner.host != worker.host or stopped

    def _never_sent(self, worker: Worker, opened: Attempt) -> bool:
        owner = self.workers[opened.journal_id]
        return owner.host == worker.host and any(it.attempt.id == opened.id for it in owner.rooms)

    def _fence(self, worker: Worker, opened: Attempt) -> bool:
        owner = self.workers[opened.journal_id]
        section = owner.section
        if not self.rules.fences or owner is worker or owner.host != worker.host or not owner.alive:
            return True
        if section is None or section.attempt.id != opened.id:
            return True
        if section.stage is Stage.CHECKED:
            return False
        section.fenced = True
        return True

    def _waits_for_another(self, worker: Worker, attempt: Attempt) -> bool:
        """What `AttemptTracker.record_late_install` finds."""
        other = self._pending()
        if not self.rules.defers or attempt.outcome is None or other is None:
            return False
        seen = self._fate(worker, other)
        return (
            seen.owner_alive is not None
            and may_invalidate(other, attempt, self.refresh_rules, self.now)
            and answer_may_come(other, self.now, seen, LIMITS)
        )

    def _came_late(self, worker: Worker, wanted: Attempt, unknown: Attempt | None) -> bool:
        """What `AttemptTracker.has_late_entry` finds."""
        if unknown is None or not may_invalidate(
            with_earlier_sends(wanted, unknown), unknown, self.refresh_rules, self.now
        ):
            return False
        taken_over = [it for it in self.attempts if it.outcome is AttemptOutcome.SUPERSEDED]
        now = (it for it in taken_over if it.from_generation == self.generation)
        return any(self._fate(worker, it).answered for it in now)

    def _unknown(self, wanted: Attempt) -> Attempt | None:
        """What `Attempts.newest_of_unknown_outcome` finds."""
        same = [
            it
            for it in self.attempts
            if it.spends(wanted.kind, wanted.from_generation, wanted.credential) and it.outcome in UNKNOWN
        ]
        return max(same, key=lambda it: (it.sends, it.opened_at), default=None)

    def _current(self, attempt: Attempt) -> Attempt:
        return next(it for it in self.attempts if it.id == attempt.id)

    def _close(self, attempt: Attempt, outcome: AttemptOutcome) -> None:
        if self._current(attempt).outcome is None:
            at = self.attempts.index(self._current(attempt))
            self.attempts[at] = self.attempts[at].model_copy(update={"outcome": outcome})

    def _on_host(self, worker: Worker) -> list[Worker]:
        return [it for it in self.workers.values() if it.host == worker.host]

    def _pending(self) -> Attempt | None:
        return next((it for it in self.attempts if it.outcome is None), None)
