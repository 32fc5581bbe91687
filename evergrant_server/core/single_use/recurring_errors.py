"""Errors that keep coming back for one connection: when the subject has to consent again. Pure.

A provider may refuse a dead refresh token by an error that no definition knows, or without a word. The
refreshes of the integration's other connections tell whether the provider, our client or this grant is
at fault (docs/protocol.md, "An error that keeps coming back").
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from evergrant_server.core.errors import ErrorCode

# From one refusal without a usable error to the next. The schedule asks again after less than a minute; two
# tries in the same instant, as those of two client secrets, are one.
ASK_AGAIN_AFTER = timedelta(seconds=30)
# How long the refreshes of other connections have worked meanwhile. Longer than a daily quota, a deployment
# or a night's maintenance lasts.
RECURS_FOR = timedelta(days=1)
# The same for errors that blame the provider or our client, which a region may meet alone; and for a refusal
# where no other connection has been refreshed, so that nothing shows whether the provider works. Longer than
# any outage that is answered with refusals was seen to last.
RECURS_FOR_ALONE = timedelta(days=7)

UNDECIDED = (
    "undecided"  # the member of a failure's audit record: of a refusal that doesn't say whose turn it is
)


class ErrorKind(StrEnum):
    """What a provider's error says about whose fault it is, as far as its reply tells."""

    UNNAMED = "unnamed"  # a 400 that names no error
    REQUEST = "request"  # a 400 that names the whole request: invalid_request
    REFUSED = "refused"  # a refusal whose name isn't known
    OTHER = "other"  # the provider's own failure, our client's, the definition's


@dataclass(frozen=True)
class UndecidedRefusals:
    """Refusals in a row, of one refresh token, that don't say whose turn it is; the newest is the one that is
    judged."""

    since: datetime  # the first of them
    answer: str  # of the newest, as `control_request.comparable_answer` writes it
    answered_since: datetime  # the first of those at the end of the row with this answer
    answered_before: datetime | None = None  # the one before the newest, if it had this answer

    @property
    def came_twice_before(self) -> bool:
        """The same answer had come twice, with some time between, before it came now."""
        before = self.answered_before
        return before is not None and before - self.answered_since >= ASK_AGAIN_AFTER

    def followed_by(self, answer: str, at: datetime, newest_at: datetime) -> "UndecidedRefusals":
        """With one more refusal; the newest so far came at `newest_at`."""
        if answer != self.answer:
            return UndecidedRefusals(self.since, answer, at)
        return UndecidedRefusals(self.since, answer, self.answered_since, newest_at)


@dataclass(frozen=True)
class RecurringError:
    """An error that a refresh was answered with, and what the store knows of other refreshes."""

    kind: ErrorKind
    repeated: bool  # the refresh before it failed in the same way
    since: datetime  # the first use of this refresh token that brought no tokens
    refused_since: datetime  # the first use that the provider refused
    client_changed_at: datetime  # the integration was changed last
    worked_at: datetime | None = None  # the newest refresh of the integration that worked, of any connection
    # the first and the newest refresh of another connection that worked after `since`
    others_worked: tuple[datetime, datetime] | None = None
    others_fail: bool = False  # another connection has failed after `worked_at`, or after `since`
    others_refused: bool = False  # another one has ended as REFRESH_REFUSED after then
    token_active: bool | None = None  # what introspection says; None: nothing
    undecided_since: datetime | None = None  # the first of the undecided refusals; None: this is none
    may_be_spent: bool = False  # another use of the token may have been served, where each is served once
    answer_lost: bool = False  # and no answer came to it, not even an error
    client_refused_at: datetime | None = None  # the newest use of the token that was refused for our client
    others_fail_as_well: bool = False  # another connection has failed after `undecided_since`
    equals_control: bool = False  # a token that can't exist is refused in the same way, while others work

    @property
    def is_of_one_grant(self) -> bool:
        """Refused without a usable error, though the same client's refreshes worked: the token is at fault.

        Not while others fail as well, nor once the client was changed: then it may be the request.
        """
        worked = self.worked_at is not None and self.worked_at >= self.client_changed_at
        return self.kind in (ErrorKind.UNNAMED, ErrorKind.REQUEST) and worked and not self.others_fail

    @property
    def client_was_repaired(self) -> bool:
        """The token was sent with a client that the provider refused, and an admin has changed that client
        before the first undecided refusal: some servers end a grant for a wrong secret."""
        refused_at, since = self.client_refused_at, self.undecided_since
        return refused_at is not None and since is not None and refused_at <= self.client_changed_at <= since

    def reason_to_reconnect(self, now: datetime) -> ErrorCode | None:
        """Why the subject has to consent again; None: the refresh is tried again later."""
        if self._is_spent(now):
            return ErrorCode.OUTCOME_UNKNOWN
        if self.client_was_repaired and self._is_refused_again(now):
            return ErrorCode.REFRESH_REFUSED
        if self.is_of_one_grant:
            asked_again = self.repeated and now - self.refused_since >= ASK_AGAIN_AFTER
            # A second connection in a row may be our client's, refused in that way: a refresh has to work
            # first.
            # invalid_request is said of limits and of faults too.
            alone = self.kind is ErrorKind.UNNAMED and not self.others_refused
            if self.token_active is False or (self.token_active is None and asked_again and alone):
                return ErrorCode.REFRESH_REFUSED
        if self.equals_control:
            return ErrorCode.GRANT_PROBABLY_OVER
        if self._others_work(now) or self._fails_alone(now):
            return ErrorCode.REFRESH_KEEPS_FAILING
        return None

    def _is_refused_again(self, now: datetime) -> bool:
        return self.undecided_since is not None and now - self.undecided_since >= ASK_AGAIN_AFTER

    def _is_spent(self, now: datetime) -> bool:
        """Another use has spent the token: it is refused again, by an error of any name.

        A use that was answered with a 5xx needs a witness, another connection that works since, and so does
        a lost answer while others fail as well: a provider that comes back may refuse everything at first.
        """
        since = self.undecided_since
        if not self.may_be_spent or since is None or not self._is_refused_again(now):
            return False
        witness = self.others_worked is not None and self.others_worked[1] > since
        return witness or (self.answer_lost and not self.others_fail_as_well)

    def _others_work(self, now: datetime) -> bool:
        """An error that blames the provider or our client has to come back for longer: one region of the
        provider may be down."""
        if self.others_worked is None or not self.repeated:
            return False
        first, newest = self.others_worked
        span = RECURS_FOR_ALONE if self.kind is ErrorKind.OTHER else RECURS_FOR
        return now - first >= span and now - newest <= RECURS_FOR

    def _fails_alone(self, now: datetime) -> bool:
        """No other connection shows what is wrong now: only refusals count, since the last repair."""
        repaired_at = self.others_worked[0] if self.others_worked else self.client_changed_at
        refused_since = self.undecided_since or self.refused_since
        since = max(refused_since, self.client_changed_at, repaired_at)
        refused = self.kind in (ErrorKind.UNNAMED, ErrorKind.REFUSED) or self.is_of_one_grant
        return refused and self.repeated and not self.others_fail and now - since >= RECURS_FOR_ALONE
