"""What the protocol's model is made of: the rules, a worker's section, a provider's family of tokens; and
what a worker can see of them from its host."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import Enum, auto

from evergrant_server.core.integrations import RefreshRules, Rotation
from evergrant_server.core.single_use.attempt import (
    UNSEEN,
    Attempt,
    AttemptOutcome,
    AttemptStatus,
    ResendDecision,
    TimeLimits,
    answer_may_come,
    decide_attempt,
    may_invalidate,
    with_earlier_sends,
)

START = datetime(2030, 1, 1, tzinfo=UTC)
LIMITS = TimeLimits(send=timedelta(seconds=15), answer=timedelta(seconds=45))
LIFETIME = timedelta(seconds=100)
GRACE = 30.0
UNKNOWN = (None, AttemptOutcome.SUPERSEDED, AttemptOutcome.GIVEN_UP)


@dataclass(frozen=True)
class Rules:
    """The protocol's rules, each of which can be taken away."""

    waits: bool = True  # takeover asks at all
    send_by: bool = True  # checked just before the bytes
    journal: bool = True  # the answer is written down before anything else
    journal_first: bool = True  # takeover looks for an answer before it sends again
    compare: bool = True  # commit only over the generation that was read
    counts: bool = True  # sends are counted through takeovers
    fences: bool = True  # a stopped worker of this host can't send after a takeover
    unsent: bool = True  # what died before it sent is no use of the credential
    verifies: bool = True  # a late answer is refreshed with before it is believed
    defers: bool = True  # an answer after a takeover is installed once the other use's end is known


class Stage(Enum):
    """Where a worker is in its critical section."""

    INTENDED = auto()
    CHECKED = auto()  # between the last check and the bytes
    WRITTEN = auto()
    ANSWERED = auto()  # the answer is in memory alone
    KEPT = auto()  # and in the journal, where there is one


@dataclass
class Answer:
    """What the provider said: the next token, or no."""

    token: int | None
    access_until: datetime | None = None


@dataclass
class Section:
    attempt: Attempt
    token: int
    stage: Stage = Stage.INTENDED
    answer: Answer | None = None
    written_at: datetime | None = None
    fenced: bool = False
    checked_at: int = 0  # the connection's generation then
    stopped_in_window: bool = False
    verifies: bool = False


@dataclass
class Worker:
    name: str
    host: str
    alive: bool = True
    paused: bool = False
    section: Section | None = None
    entries: list[tuple[Section, Answer]] = field(default_factory=list)
    rooms: list[Section] = field(default_factory=list)  # died before anything was sent


class Provider:
    """One family of refresh tokens, numbered."""

    def __init__(self, rotation: Rotation, kills: bool) -> None:
        self.rotation = rotation
        self.kills = kills  # a second use ends the family (RFC 9700 section 4.14.2)
        self.newest = 1
        self.alive = True
        self.used_at: dict[int, datetime] = {}

    def accepts(self, token: int, now: datetime) -> bool:
        if not self.alive:
            return False
        if self.rotation is Rotation.NONE or token == self.newest:
            return True
        used = self.used_at.get(token)
        in_grace = used is not None and now - used <= timedelta(seconds=GRACE)
        return self.rotation is Rotation.GRACE and in_grace and token == self.newest - 1

    def use(self, token: int, now: datetime) -> Answer:
        if not self.accepts(token, now):
            if token in self.used_at and self.kills and self.rotation is not Rotation.NONE:
                self.alive = False
            return Answer(None)
        if self.rotation is Rotation.NONE:
            return Answer(token, now + LIFETIME)
        if token == self.newest:
            self.used_at[token] = now
            self.newest += 1
        return Answer(self.newest, now + LIFETIME)


def without(rule: str) -> Rules:
    return replace(Rules(), **{rule: False})


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
        self.installed_on = ""  # the host that brought the newest tokens
        self.rotates = False  # a refresh is due: another use may have ended the family (`Commands.ROTATE`)
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
        return self._is_awaited(worker, other) and may_invalidate(
            other, attempt, self.refresh_rules, self.now
        )

    def _is_awaited(self, worker: Worker, use: Attempt) -> bool:
        """True while a use of this host may be answered; of other hosts' uses nothing is visible."""
        seen = self._fate(worker, use)
        return seen.owner_alive is not None and answer_may_come(use, self.now, seen, LIMITS)

    def _may_have_been_ended(self, worker: Worker, attempt: Attempt) -> bool:
        """What `AttemptTracker.record_late_install` returns: a use that was refused or never answered."""
        uses = [use for use in self.attempts if use.outcome in (*UNKNOWN, AttemptOutcome.REFUSED)]
        ended = [use for use in uses if use.outcome is not None or not self._is_awaited(worker, use)]
        return any(may_invalidate(use, attempt, self.refresh_rules, self.now) for use in ended)

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
        """What `Attempts.earlier_uses` says of an unknown outcome."""
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
