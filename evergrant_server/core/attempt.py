"""One use of a single-use credential: the intent that is committed before anything is sent."""

from datetime import datetime, timedelta
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from evergrant_server.core.errors import Code
from evergrant_server.core.grant import MAIN
from evergrant_server.core.ids import AttemptId, ConnectionId, Tenant
from evergrant_server.core.provider import RefreshRules


class AttemptKind(StrEnum):
    REFRESH = "refresh"
    CODE_EXCHANGE = "code_exchange"


class Outcome(StrEnum):
    """How an attempt ended. An attempt without one is open: its outcome is unknown."""

    INSTALLED = "installed"
    REFUSED = "refused"  # the provider answered; the credential is spent or bad
    NOT_SENT = "not_sent"  # it is certain that no byte left, or the provider said it did nothing
    SUPERSEDED = "superseded"  # another attempt took over


class Attempt(BaseModel):
    """The intent row. `send_by` is the last moment at which its bytes may be written."""

    model_config = ConfigDict(frozen=True)

    tenant: Tenant
    id: AttemptId
    connection_id: ConnectionId
    chain: str = MAIN
    kind: AttemptKind
    from_generation: int
    journal_id: str
    opened_at: datetime
    send_by: datetime
    outcome: Outcome | None = None
    closed_at: datetime | None = None
    revision: int = 1


class Takeover(StrEnum):
    """What to do about an open attempt that somebody else began."""

    RESEND = "resend"
    WAIT = "wait"


ANSWER_LIMIT = timedelta(seconds=45)  # the longest a provider is listened to, see egress


def takeover(
    attempt: Attempt,
    rules: RefreshRules,
    now: datetime,
    *,
    token_valid: bool,
    owner_alive: bool | None,
    in_flight: bool | None,
) -> Takeover:
    """Decide about an attempt of unknown outcome (DESIGN, protocol rule 5). Pure.

    Rotation `none`, or inside a declared `grace`: resend. `strict` and `unknown`: never while
    the owner's journal lock is held and the access token is still valid, nor while an answer
    can still come; afterwards resend, once. `owner_alive` and `in_flight` are None when the
    owner is on another host, which counts as alive until its answer can no longer come.
    """
    safe_for = rules.resend_is_safe_for
    if not in_flight and safe_for is not None and now - attempt.opened_at <= safe_for:
        return Takeover.RESEND
    if answer_may_come(attempt, now, owner_alive=owner_alive, in_flight=in_flight):
        return Takeover.WAIT
    if owner_alive is not False and token_valid:
        return Takeover.WAIT
    return Takeover.RESEND


def answer_may_come(
    attempt: Attempt, now: datetime, *, owner_alive: bool | None, in_flight: bool | None
) -> bool:
    """True while somebody may still be listening for the provider's answer."""
    if in_flight is not None:
        return in_flight
    return owner_alive is not False and now < attempt.send_by + ANSWER_LIMIT


def outcome_of_refusal(status: int, code: Code = Code.REPLY_UNREADABLE) -> Outcome | None:
    """What an error answer says about the credential; None: it may or may not be spent.

    429, 503 and "slow down" say that the request was not served. Another 5xx can follow a commit
    at the provider, and so can a 2xx that nobody can read. A 2xx that reports an error has
    refused instead of acting: many providers say everything with status 200.
    """
    if status in (429, 503) or code is Code.PROVIDER_RATE_LIMITED:
        return Outcome.NOT_SENT
    reports_error = 200 <= status < 300 and code is not Code.REPLY_UNREADABLE
    if 400 <= status < 500 or reports_error:
        return Outcome.REFUSED
    return None
