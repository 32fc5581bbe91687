"""What the protocol's model is made of: the rules, a worker's section, a provider's family of tokens."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import Enum, auto

from evergrant_server.core.integrations import Rotation
from evergrant_server.core.single_use.attempt import Attempt, AttemptOutcome, TimeLimits

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
