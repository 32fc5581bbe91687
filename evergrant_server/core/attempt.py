"""One use of a single-use credential: the intent that is committed before anything is sent."""

from datetime import datetime, timedelta
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

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
    attempt: Attempt, rules: RefreshRules, now: datetime, *, token_valid: bool, owner_alive: bool
) -> Takeover:
    """Decide about an attempt of unknown outcome (DESIGN, protocol rule 5). Pure.

    `none`, or inside a declared `grace`: resend. `strict` and `unknown`: never while the
    owner's journal lock is held and the access token is still valid, nor while the owner's
    answer can still come; afterwards resend once.
    """
    answer_may_come = now < attempt.send_by + ANSWER_LIMIT
    safe_for = rules.resend_is_safe_for
    if safe_for is not None and (now - attempt.opened_at) <= safe_for:
        return Takeover.RESEND
    if owner_alive and (token_valid or answer_may_come):
        return Takeover.WAIT
    return Takeover.RESEND
