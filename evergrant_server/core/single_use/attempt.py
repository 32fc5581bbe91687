"""One use of a single-use credential: the intent that is committed before anything is sent.

The rules are in docs/protocol.md; they are pure functions here, so that a model can try them
all (tests/unit/core/test_protocol_model.py).
"""

from datetime import datetime, timedelta
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from evergrant_server.core.clock import CLOCK_SKEW
from evergrant_server.core.connections.grant import MAIN_SLOT
from evergrant_server.core.connections.refresh_rules import RefreshRules
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import AttemptId, ConnectionId, Tenant


class AttemptKind(StrEnum):
    """What is spent."""

    REFRESH = "refresh"  # the refresh token of a generation
    CODE_EXCHANGE = "code_exchange"  # the authorization code of a consent
    LATE_TOKENS = "late_tokens"  # the refresh token of a reply that came too late to be installed
    DEVICE_CODE = "device_code"  # the poll that a device code's approval answers (RFC 8628 section 3.4)
    CLIENT_GRANT = "client_grant"  # none is spent, but the reply must land before a revocation ends
    REGISTRATION = "registration"  # an initial access token (RFC 7591 section 3)


ROTATING = (AttemptKind.REFRESH, AttemptKind.LATE_TOKENS)  # with their answer the token before is over


class AttemptOutcome(StrEnum):
    """How an attempt ended. An attempt without one is open: its outcome is unknown."""

    INSTALLED = "installed"
    REFUSED = "refused"  # the provider answered; the credential is spent or bad
    NOT_SENT = "not_sent"  # it is certain that no byte left, or the provider said it did nothing
    SUPERSEDED = "superseded"  # another attempt took over
    INSTALLED_LATE = "installed_late"  # after another use, which may have ended what came
    GIVEN_UP = "given_up"  # unknown for good: the credential may not be sent once more
    UNREAD = "unread"  # it was a yes whose tokens the definition can't read: its journal keeps it


class TimeLimits(BaseModel):
    """The time a use may take. A harness scales them down; workers use `LIMITS`."""

    model_config = ConfigDict(frozen=True)

    send: timedelta = timedelta(seconds=15)  # from the intent's commit to the first byte
    answer: timedelta = timedelta(seconds=45)  # the longest a provider is listened to, see egress
    poll_interval: timedelta = timedelta(seconds=3)  # how soon to ask again for what must be waited for
    replay: timedelta = timedelta(minutes=10)  # a journalled answer keeps nobody else waiting for longer


LIMITS = TimeLimits()
# Of a credential whose second use may be its family's end. Once nobody can be listening any more,
# sending again can lose nothing that isn't lost: an outage that answers 500 for days must not
# condemn a grant that it never touched. The first use that is refused says what became of it.
MAX_SENDS = 1000


class Attempt(BaseModel):
    """The intent row. `send_by` is the last moment at which its bytes may be written.

    `credential` tells apart what shares a generation: the consent a code came with, say.
    `sends` counts the uses of this credential whose outcome nobody knows, this one included;
    it is carried from attempt to attempt, through restarts and from worker to worker.
    """

    model_config = ConfigDict(frozen=True)

    tenant: Tenant
    id: AttemptId
    connection_id: ConnectionId
    slot: str = MAIN_SLOT
    kind: AttemptKind
    credential: str = ""
    from_generation: int
    journal_id: str
    opened_at: datetime
    send_by: datetime
    sends: int = 1
    first_sent_at: datetime | None = None  # when the first of these uses was opened; None: this is it
    outcome: AttemptOutcome | None = None
    closed_at: datetime | None = None
    revision: int = 1

    @property
    def first_opened_at(self) -> datetime:
        """When this credential may first have been used: grace and a token's age count from here."""
        return self.first_sent_at or self.opened_at

    def tokens_valid_from(self, lifetime_s: float | None) -> datetime:
        """From when the tokens of its answer live. From the first use: a server may answer a later one
        with the first one's token and its full lifetime anew. Not where little would be left of them,
        as after an outage longer than that: the first use can't have been served by then."""
        first = min(self.first_opened_at, self.opened_at)
        if lifetime_s is not None and self.opened_at - first > timedelta(seconds=lifetime_s) * 3 / 4:
            return self.opened_at
        return first

    def spends(self, kind: AttemptKind, from_generation: int, credential: str) -> bool:
        """True when it is a use of this very credential."""
        return (self.kind, self.from_generation, self.credential) == (kind, from_generation, credential)


class LateTokens(BaseModel):
    """Tokens that came when the connection had been given up, without them: to be verified first."""

    model_config = ConfigDict(frozen=True)

    tenant: Tenant
    attempt_id: AttemptId
    connection_id: ConnectionId
    slot: str = MAIN_SLOT
    from_generation: int
    requested_at: datetime
    received_at: datetime
    revision: int = 1


class Takeover(StrEnum):
    """What to do about an open attempt that somebody else began."""

    RESEND = "resend"
    WAIT = "wait"
    GIVE_UP = "give up"  # it was sent as often as it may be: its outcome stays unknown
    AWAIT_DEFINITION = "read"  # its answer is kept, and waits for a definition that can read it


def decide_takeover(
    attempt: Attempt,
    rules: RefreshRules,
    now: datetime,
    *,
    token_valid: bool,
    owner_alive: bool | None,
    in_flight: bool | None,
    answered: bool = False,
    limits: TimeLimits = LIMITS,
) -> Takeover:
    """Decide about an attempt of unknown outcome (docs/protocol.md). Pure.

    `answered`: its answer is in a journal of this host. It is replayed, never asked for again.
    Rotation `none`, or inside a declared `grace`: resend. `strict` and `unknown`: never while
    the owner's journal lock is held and the access token is still valid, nor while an answer
    can still come; afterwards resend, `MOST_SENDS` times at the most. `owner_alive` and
    `in_flight` are None when the owner is on another host, which counts as alive until its
    answer can no longer come.
    """
    if answered or in_flight:
        return Takeover.WAIT
    if _is_safe_to_resend(rules, attempt, now):
        return Takeover.RESEND
    if answer_may_come(attempt, now, owner_alive=owner_alive, in_flight=in_flight, limits=limits):
        return Takeover.WAIT
    if owner_alive is not False and token_valid:
        return Takeover.WAIT
    return Takeover.RESEND if may_send_again(rules, attempt, now) else Takeover.GIVE_UP


def may_send_again(rules: RefreshRules, last: Attempt, now: datetime) -> bool:
    """True while a credential may be sent once more after `last`, its newest use of unknown outcome."""
    return _is_safe_to_resend(rules, last, now) or last.sends < MAX_SENDS


def decide_attempt(
    wanted: Attempt,
    rules: RefreshRules,
    now: datetime,
    *,
    opened: Attempt | None,
    unknown: Attempt | None,
    token_valid: bool,
    unread: Attempt | None = None,
    owner_alive: bool | None = None,
    in_flight: bool | None = None,
    answered: bool = False,
    limits: TimeLimits = LIMITS,
) -> Takeover:
    """May `wanted` be the next attempt of its chain? Pure; RESEND means yes.

    `opened` is the chain's open attempt, of which the last arguments tell what can be seen;
    `unknown` is the newest use of this very credential whose outcome nobody knows, and `unread` one
    whose tokens wait to be read: no later use, inside a `grace`, makes them any less good.
    """
    kept = unread is not None and not _is_safe_to_resend(rules, unread, now)
    if opened is not None and opened.spends(wanted.kind, wanted.from_generation, wanted.credential):
        verdict = decide_takeover(
            opened,
            rules,
            now,
            token_valid=token_valid,
            owner_alive=owner_alive,
            in_flight=in_flight,
            answered=answered,
            limits=limits,
        )
        return Takeover.AWAIT_DEFINITION if kept and verdict is not Takeover.WAIT else verdict
    if opened is not None and answer_may_come(
        opened, now, owner_alive=owner_alive, in_flight=in_flight, answered=answered, limits=limits
    ):
        return Takeover.WAIT
    if kept:
        return Takeover.AWAIT_DEFINITION
    if unknown is not None and not may_send_again(rules, unknown, now):
        return Takeover.GIVE_UP
    return Takeover.RESEND


def is_dated_ahead(attempt: Attempt, now: datetime, limits: TimeLimits = LIMITS) -> bool:
    """It was opened by a clock that was ahead of ours: its deadlines are no moments to wait for."""
    return attempt.send_by - limits.send - now > CLOCK_SKEW


def redated(attempt: Attempt, since: datetime, limits: TimeLimits = LIMITS) -> Attempt:
    """One that is dated ahead, with deadlines that count from when it was first seen."""
    deadlines = {"opened_at": since, "send_by": since + limits.send}
    return attempt.model_copy(update={**deadlines, "first_sent_at": attempt.first_opened_at})


def with_earlier_sends(wanted: Attempt, unknown: Attempt | None) -> Attempt:
    """`wanted` with the uses before it: the count goes from attempt to attempt."""
    if unknown is None:
        return wanted
    before = {"sends": unknown.sends + 1, "first_sent_at": unknown.first_opened_at}
    return wanted.model_copy(update=before)


def _is_safe_to_resend(rules: RefreshRules, last: Attempt, now: datetime) -> bool:
    """Inside the time in which the provider takes the same credential again."""
    safe_for, age = rules.resend_is_safe_for, now - last.first_opened_at
    if safe_for is None or age < -CLOCK_SKEW:  # from the future: how long ago it was isn't known
        return safe_for == timedelta.max
    return age <= safe_for


def may_invalidate(other: Attempt, answered: Attempt, rules: RefreshRules, now: datetime) -> bool:
    """True when the provider may end by `other` what `answered` brought: a second use of its credential,
    which it doesn't take again. Pure."""
    same = other.spends(answered.kind, answered.from_generation, answered.credential)
    return same and other.id != answered.id and not _is_safe_to_resend(rules, other, now)


def answer_may_come(
    attempt: Attempt,
    now: datetime,
    *,
    owner_alive: bool | None,
    in_flight: bool | None,
    answered: bool = False,
    limits: TimeLimits = LIMITS,
) -> bool:
    """True while what comes of it has to be waited for: by a revocation, or by a new consent.

    Somebody may be listening, or a journal has the answer. One that can't be replayed (a mistake
    in judging it, a key that is away) doesn't stand in their way for ever.
    """
    if answered:
        return now < attempt.send_by + limits.answer + limits.replay
    if in_flight is not None:
        return in_flight
    return owner_alive is not False and now < attempt.send_by + limits.answer


def outcome_of_error(status: int, code: ErrorCode = ErrorCode.REPLY_UNREADABLE) -> AttemptOutcome | None:
    """What an error answer says about the credential; None: it may or may not be spent.

    429, 503 and "slow down" say that the request was not served. Another 5xx can follow a commit
    at the provider, and so can a 2xx that nobody can read. A 2xx that reports an error has
    refused instead of acting: many providers say everything with status 200.
    """
    if status in (429, 503) or code is ErrorCode.PROVIDER_RATE_LIMITED:
        return AttemptOutcome.NOT_SENT
    reports_error = 200 <= status < 300 and code is not ErrorCode.REPLY_UNREADABLE
    if 400 <= status < 500 or reports_error:
        return AttemptOutcome.REFUSED
    return None
