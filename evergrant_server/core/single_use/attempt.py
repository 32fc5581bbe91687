"""Attempts: the intent row, and the rules when a credential may be sent again.

An attempt is committed before its request is sent. docs/protocol.md has the rules; they are pure
functions here, so that a model test can try them all
(tests/unit/core/single_use/test_protocol_model.py).
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from evergrant_server.core.clock import CLOCK_SKEW
from evergrant_server.core.connections.grant import MAIN_SLOT
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import AttemptId, ConnectionId, IntegrationId, TenantRow
from evergrant_server.core.integrations import RefreshRules
from evergrant_server.core.model import FrozenModel


class AttemptKind(StrEnum):
    """What is spent."""

    REFRESH = "refresh"  # the refresh token of a generation
    CODE_EXCHANGE = "code_exchange"  # the authorization code of a consent
    LATE_TOKENS = "late_tokens"  # the refresh token of a reply that came too late to be installed
    DEVICE_CODE = "device_code"  # the poll that a device code's approval answers (RFC 8628 section 3.4)
    CLIENT_GRANT = "client_grant"  # none is spent, but the reply must land before a revocation ends
    REGISTRATION = "registration"  # an initial access token (RFC 7591 section 3)


ROTATING = (AttemptKind.REFRESH, AttemptKind.LATE_TOKENS)  # their reply replaces the token
CONSENTED = (AttemptKind.CODE_EXCHANGE, AttemptKind.DEVICE_CODE)  # their reply brings a consent's grant


class AttemptOutcome(StrEnum):
    """How an attempt ended. An attempt without one is open: its outcome is unknown."""

    INSTALLED = "installed"
    REFUSED = "refused"  # the provider answered: the credential is spent or invalid
    NOT_SENT = "not_sent"  # no byte left, or the provider says that it did not act
    SUPERSEDED = "superseded"  # another attempt took over
    INSTALLED_LATE = "installed_late"  # after another use, which may have invalidated the tokens
    GIVEN_UP = "given_up"  # unknown for good: the credential may not be sent again
    UNREAD = "unread"  # a success whose tokens the definition can't parse: its journal keeps it


class TimeLimits(FrozenModel):
    """The time a use may take. A harness scales them down; workers use `LIMITS`."""

    send: timedelta = timedelta(seconds=15)  # from the intent's commit to the first byte
    # how long the worker waits for the provider's reply, see egress
    answer: timedelta = timedelta(seconds=45)
    poll_interval: timedelta = timedelta(seconds=3)  # between two looks at an attempt that is waited for
    replay: timedelta = timedelta(minutes=10)  # other work waits this long for a journalled reply


LIMITS = TimeLimits()
# Uses of a credential whose second use may end its token family. Once no worker can still get the
# reply, sending again loses nothing: an outage that answers 500 for days must not end a grant that
# the provider never touched. The first use that is refused tells what became of it.
MAX_SENDS = 1000


class Attempt(TenantRow):
    """The intent row. `send_by` is the last moment at which its bytes may be written.

    `credential` tells apart the credentials of one generation, such as the consents of two codes.
    `sends` counts the uses of this credential with an unknown outcome, this one included; it is
    carried from attempt to attempt, through restarts and from worker to worker.
    """

    id: AttemptId
    connection_id: ConnectionId
    integration_id: IntegrationId | None = None  # None: a version before this column wrote it
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

    @property
    def first_opened_at(self) -> datetime:
        """When this credential may first have been used: grace and a token's age count from here."""
        return self.first_sent_at or self.opened_at

    def tokens_valid_from(self, lifetime_s: float | None) -> datetime:
        """When the lifetime of its tokens starts: at the first use, since a server may answer a later
        use with the first one's token. At this use if three quarters of the lifetime have passed
        since: the provider can't have served the first use then."""
        first = min(self.first_opened_at, self.opened_at)
        if lifetime_s is not None and self.opened_at - first > timedelta(seconds=lifetime_s) * 3 / 4:
            return self.opened_at
        return first

    def spends(self, kind: AttemptKind, from_generation: int, credential: str) -> bool:
        """True when it is a use of this credential."""
        return (self.kind, self.from_generation, self.credential) == (kind, from_generation, credential)


class LateTokens(TenantRow):
    """The row of tokens whose reply came too late; they are verified before they are used."""

    attempt_id: AttemptId
    connection_id: ConnectionId
    slot: str = MAIN_SLOT
    from_generation: int
    requested_at: datetime
    received_at: datetime


@dataclass(frozen=True)
class AttemptStatus:
    """What this host can tell of an attempt. None: its owner is on another host."""

    owner_alive: bool | None = None
    in_flight: bool | None = None
    answered: bool = False  # its reply is in a journal of this host
    unsent: bool = False  # its owner died, and certainly sent no byte
    age_s: float | None = None  # of another worker's attempt in flight, in seconds since boot


UNSEEN = AttemptStatus()


class ResendDecision(StrEnum):
    """Whether a credential may be sent, or sent again, and what a worker does when it may not."""

    RESEND = "resend"
    WAIT = "wait"
    GIVE_UP = "give up"  # it was sent `MAX_SENDS` times: its outcome stays unknown
    AWAIT_DEFINITION = "await definition"  # its reply is kept until a definition can parse it


def decide_resend(
    attempt: Attempt,
    rules: RefreshRules,
    now: datetime,
    seen: AttemptStatus,
    *,
    token_valid: bool,
    limits: TimeLimits = LIMITS,
) -> ResendDecision:
    """Decide about an attempt of unknown outcome (docs/protocol.md). Pure.

    A reply in a journal of this host is replayed, never requested again. Rotation `none`, or inside
    a declared `grace`: resend, but not while an owner on another host may yet send it, if the `grace` lasts
    longer than that. `strict` and `unknown`: never while the owner's journal lock is held
    and the access token is still valid, nor while an answer can still come; afterwards resend,
    `MAX_SENDS` times at the most. An owner on another host counts as alive until its answer can no
    longer come.
    """
    if seen.answered or seen.in_flight:
        return ResendDecision.WAIT
    if is_safe_to_resend(rules, attempt, now):
        return (
            ResendDecision.WAIT
            if _may_be_sent_past_its_successor(rules, attempt, now, seen)
            else ResendDecision.RESEND
        )
    if answer_may_come(attempt, now, seen, limits):
        return ResendDecision.WAIT
    if seen.owner_alive is not False and token_valid:
        return ResendDecision.WAIT
    return ResendDecision.RESEND if may_send_again(rules, attempt, now) else ResendDecision.GIVE_UP


def may_send_again(rules: RefreshRules, last: Attempt, now: datetime) -> bool:
    """True while a credential may be sent once more after `last`, its newest use of unknown outcome."""
    return is_safe_to_resend(rules, last, now) or last.sends < MAX_SENDS


def decide_attempt(
    wanted: Attempt,
    rules: RefreshRules,
    now: datetime,
    *,
    opened: Attempt | None,
    unknown: Attempt | None,
    token_valid: bool,
    unread: Attempt | None = None,
    seen: AttemptStatus = UNSEEN,
    limits: TimeLimits = LIMITS,
) -> ResendDecision:
    """May `wanted` be the next attempt of its slot? Pure; RESEND means yes.

    `opened` is the slot's open attempt, and `seen` what this host sees of it;
    `unknown` is the newest use of this credential with an unknown outcome; `unread` is a use whose
    tokens wait for a definition, which no later use inside a `grace` invalidates.
    """
    kept = unread is not None and not is_safe_to_resend(rules, unread, now)
    if opened is not None and opened.spends(wanted.kind, wanted.from_generation, wanted.credential):
        verdict = decide_resend(opened, rules, now, seen, token_valid=token_valid, limits=limits)
        return ResendDecision.AWAIT_DEFINITION if kept and verdict is not ResendDecision.WAIT else verdict
    if opened is not None and answer_may_come(opened, now, seen, limits):
        return ResendDecision.WAIT
    if kept:
        return ResendDecision.AWAIT_DEFINITION
    if unknown is not None and not may_send_again(rules, unknown, now):
        return ResendDecision.GIVE_UP
    return ResendDecision.RESEND


def is_dated_ahead(attempt: Attempt, now: datetime, limits: TimeLimits = LIMITS) -> bool:
    """Opened by a clock that was ahead of ours, so its deadlines can't be waited for."""
    return attempt.send_by - limits.send - now > CLOCK_SKEW


def redated(attempt: Attempt, since: datetime, limits: TimeLimits = LIMITS) -> Attempt:
    """The attempt with its deadlines moved to our clock: they count from `since`, when it was first seen."""
    return attempt.__replace__(
        opened_at=since, send_by=since + limits.send, first_sent_at=attempt.first_opened_at
    )


def with_earlier_sends(wanted: Attempt, unknown: Attempt | None) -> Attempt:
    """`wanted`, with the earlier uses of its credential counted."""
    if unknown is None:
        return wanted
    return wanted.__replace__(sends=unknown.sends + 1, first_sent_at=unknown.first_opened_at)


def is_safe_to_resend(rules: RefreshRules, last: Attempt, now: datetime) -> bool:
    """Inside the time in which the provider accepts the same credential again."""
    safe_for, age = rules.resend_is_safe_for, now - last.first_opened_at
    if safe_for is None or age < -CLOCK_SKEW:  # from the future: how long ago it was isn't known
        return safe_for == timedelta.max
    return age <= safe_for


def _may_be_sent_past_its_successor(
    rules: RefreshRules, attempt: Attempt, now: datetime, seen: AttemptStatus
) -> bool:
    """Whether an owner on another host, which may be stopped, may yet send the token, and the `grace` lasts
    longer than that.

    Another use at once could bring a successor that is spent in the meantime: then the owner's use, of a
    token that is two rotations old, ends the family.
    """
    ends_by_itself = rules.resend_is_safe_for != timedelta.max and is_safe_to_resend(
        rules, attempt, attempt.send_by
    )
    return seen.owner_alive is None and now <= attempt.send_by and ends_by_itself


def may_invalidate(attempt: Attempt, answered: Attempt, rules: RefreshRules, now: datetime) -> bool:
    """True when `attempt` may invalidate the tokens of `answered`: a second use of its credential, which
    the provider doesn't accept again."""
    same = attempt.spends(answered.kind, answered.from_generation, answered.credential)
    return same and attempt.id != answered.id and not is_safe_to_resend(rules, attempt, now)


def answer_may_come(
    attempt: Attempt, now: datetime, seen: AttemptStatus, limits: TimeLimits = LIMITS
) -> bool:
    """True while a revocation or a new consent has to wait for the attempt's reply.

    Its worker may still get the reply, or a journal has it. A reply that can't be replayed (a bug
    in its parser, a missing key) delays them for `limits.replay` only.
    """
    if seen.answered:
        return now < attempt.send_by + limits.answer + limits.replay
    if seen.in_flight is not None:
        return seen.in_flight
    return seen.owner_alive is not False and now < attempt.send_by + limits.answer


def outcome_of_error(status: int, code: ErrorCode = ErrorCode.REPLY_UNREADABLE) -> AttemptOutcome | None:
    """What an error reply says about the credential; None: it may or may not be spent.

    429, 503 and `slow_down` say that the request was not served. Another 5xx can follow a commit
    at the provider, and so can a 2xx that can't be parsed. A 2xx that reports an error has refused
    instead of acting: many providers answer everything with status 200.
    """
    if status in (429, 503) or code is ErrorCode.PROVIDER_RATE_LIMITED:
        return AttemptOutcome.NOT_SENT
    reports_error = 200 <= status < 300 and code is not ErrorCode.REPLY_UNREADABLE
    if 400 <= status < 500 or reports_error:
        return AttemptOutcome.REFUSED
    return None
