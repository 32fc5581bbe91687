"""News that a grant was ended, or may have been, on the provider's side. Pure.

A provider says so by introspection, a security event or a hook of its own. What is certain
stops the connection at once; what is not is a reason to refresh: the token endpoint knows.
"""

from datetime import datetime, timedelta
from enum import StrEnum

from evergrant_server.core.connections.account import FollowUp
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import Grant
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.base import Message, RequestContext
from evergrant_server.core.messages.connection import ConnectionState

_TELLING_TAKES = timedelta(minutes=10)
SIGNAL_REVOKED_AT_PROVIDER = "revoked_elsewhere"


class ReportSource(StrEnum):
    """How it came to us."""

    INTROSPECTION = "introspection"  # RFC 7662
    SECURITY_EVENT = "security_event"  # a signed token of RISC or CAEP (RFC 8417)
    HOOK = "hook"  # a provider's own uninstall or deauthorization call


class Certainty(StrEnum):
    """What the news say of the grant."""

    ENDED = "ended"  # the grant, or the account it is of, is gone
    SUSPECTED = "doubted"  # sessions or an access token ended: the refresh token may live on


class ProviderReport(Message):
    """One piece of news about one connection. `at` is when it was true over there, if that was said."""

    source: ReportSource
    kind: str  # the event's type, as the provider names it
    certainty: Certainty
    at: datetime | None = None
    at_is_issue_time: bool = False  # `at` is when it was told; it happened at some moment before
    generation: int | None = None  # the grant it is about, where it is known: news of an older one are old


class ReportDecision(StrEnum):
    """What follows from news."""

    ENDED = "ended"  # the subject must consent again
    REFRESH_REQUESTED = "asked"  # the workflow refreshes, and so finds out
    OUTDATED = "older"  # it is about a grant that was replaced since
    NOTHING_HELD = "nothing_held"  # nothing is held that could have ended, or that is known already
    UNTESTABLE = "untestable"  # doubted, and there is no refresh token to find out with


class RevokedAtProvider(Message):
    """The signal: the grant of `generation` is over, says the provider."""

    generation: int
    source: ReportSource
    context: RequestContext


def judge_report(connection: Connection, grant: Grant | None, news: ProviderReport) -> ReportDecision:
    """Decide. A grant that was obtained after what the news tell of is never touched.

    `obtained_at` is when its tokens were asked for: whatever ended before that did not end them.
    """
    known = connection.reason is ErrorCode.GRANT_REVOKED_ELSEWHERE
    if grant is None or known or connection.state not in (LifecycleState.ACTIVE, LifecycleState.NEEDS_REAUTH):
        return ReportDecision.NOTHING_HELD
    if news.at is not None and news.at < grant.obtained_at:
        return ReportDecision.OUTDATED
    if news.generation is not None and news.generation < grant.generation:
        return ReportDecision.OUTDATED
    if news.certainty is Certainty.ENDED and not _may_be_older(grant, news):
        return ReportDecision.ENDED
    if connection.state is not LifecycleState.ACTIVE:
        return ReportDecision.NOTHING_HELD
    return ReportDecision.REFRESH_REQUESTED if grant.refreshable else ReportDecision.UNTESTABLE


def _may_be_older(grant: Grant, news: ProviderReport) -> bool:
    """Told without its moment, just after the grant was obtained: it may be about the one before."""
    recent = news.at is not None and news.at - grant.obtained_at < _TELLING_TAKES
    return news.at_is_issue_time and recent and grant.refreshable


def is_leasable(
    state: LifecycleState,
    reason: ErrorCode | None,
    follow_up: FollowUp | None = None,
    *,
    reported: bool = False,
) -> bool:
    """May a valid token be handed out? While the subject is asked again, too, but not one that the
    provider has said is dead, nor one for nobody knows which account.

    `reported`: an app says that the provider's API refuses it. Alone that proves nothing; with a
    grant that can't be refreshed any more it is no token that is valid.
    """
    held = (
        state in (LifecycleState.ACTIVE, LifecycleState.NEEDS_REAUTH)
        and reason is not ErrorCode.GRANT_REVOKED_ELSEWHERE
    )
    refused = reported and state is LifecycleState.NEEDS_REAUTH
    return held and not refused and follow_up is not FollowUp.CHOOSING


def after_external_revocation(life: ConnectionState, generation: int) -> ConnectionState:
    """The life once the store says so of `generation`; a newer grant stays what it is."""
    if life.state not in (LifecycleState.ACTIVE, LifecycleState.NEEDS_REAUTH) or life.generation > generation:
        return life
    changes = {
        "state": LifecycleState.NEEDS_REAUTH,
        "reason": ErrorCode.GRANT_REVOKED_ELSEWHERE,
        "retry_at": None,
        "ask_at": None,
        "failures": 0,
    }
    return life.model_copy(update=changes)
