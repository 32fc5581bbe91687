"""News that a grant was ended, or may have been, on the provider's side. Pure.

A provider says so by introspection, a security event or a hook of its own. What is certain
stops the connection at once; what is not is a reason to refresh: the token endpoint knows.
"""

from datetime import datetime, timedelta
from enum import StrEnum

from evergrant_server.core.account import FollowUp
from evergrant_server.core.connection import Connection, State
from evergrant_server.core.errors import Code
from evergrant_server.core.grant import Grant
from evergrant_server.core.message import Asked, Message
from evergrant_server.core.messages import Life

_TELLING_TAKES = timedelta(minutes=10)
SIGNAL_REVOKED_ELSEWHERE = "revoked_elsewhere"


class Source(StrEnum):
    """How it came to us."""

    INTROSPECTION = "introspection"  # RFC 7662
    SECURITY_EVENT = "security_event"  # a signed token of RISC or CAEP (RFC 8417)
    HOOK = "hook"  # a provider's own uninstall or deauthorization call


class Weight(StrEnum):
    """What the news say of the grant."""

    ENDED = "ended"  # the grant, or the account it is of, is gone
    DOUBTED = "doubted"  # sessions or an access token ended: the refresh token may live on


class NewsFromElsewhere(Message):
    """One piece of news about one connection. `at` is when it was true over there, if that was said."""

    source: Source
    kind: str  # the event's type, as the provider names it
    weight: Weight
    at: datetime | None = None
    issued: bool = False  # `at` is when it was told; it happened at some moment before
    generation: int | None = None  # the grant it is about, where it is known: news of an older one are old


class Verdict(StrEnum):
    """What follows from news."""

    ENDED = "ended"  # the subject must consent again
    ASKED = "asked"  # the workflow refreshes, and so finds out
    OLDER = "older"  # it is about a grant that was replaced since
    NOTHING_HELD = "nothing_held"  # nothing is held that could have ended, or that is known already
    UNTESTABLE = "untestable"  # doubted, and there is no refresh token to find out with


class RevokedElsewhere(Message):
    """The signal: the grant of `generation` is over, says the provider."""

    generation: int
    source: Source
    asked: Asked


def judge_news(connection: Connection, grant: Grant | None, news: NewsFromElsewhere) -> Verdict:
    """Decide. A grant that was obtained after what the news tell of is never touched.

    `obtained_at` is when its tokens were asked for: whatever ended before that did not end them.
    """
    known = connection.reason is Code.GRANT_REVOKED_ELSEWHERE
    if grant is None or known or connection.state not in (State.ACTIVE, State.NEEDS_REAUTH):
        return Verdict.NOTHING_HELD
    if news.at is not None and news.at < grant.obtained_at:
        return Verdict.OLDER
    if news.generation is not None and news.generation < grant.generation:
        return Verdict.OLDER
    if news.weight is Weight.ENDED and not _may_be_older(grant, news):
        return Verdict.ENDED
    if connection.state is not State.ACTIVE:
        return Verdict.NOTHING_HELD
    return Verdict.ASKED if grant.refreshable else Verdict.UNTESTABLE


def _may_be_older(grant: Grant, news: NewsFromElsewhere) -> bool:
    """Told without its moment, just after the grant was obtained: it may be about the one before."""
    recent = news.at is not None and news.at - grant.obtained_at < _TELLING_TAKES
    return news.issued and recent and grant.refreshable


def leasable(
    state: State, reason: Code | None, follow_up: FollowUp | None = None, *, reported: bool = False
) -> bool:
    """May a valid token be handed out? While the subject is asked again, too, but not one that the
    provider has said is dead, nor one for nobody knows which account.

    `reported`: an app says that the provider's API refuses it. Alone that proves nothing; with a
    grant that can't be refreshed any more it is no token that is valid.
    """
    held = state in (State.ACTIVE, State.NEEDS_REAUTH) and reason is not Code.GRANT_REVOKED_ELSEWHERE
    refused = reported and state is State.NEEDS_REAUTH
    return held and not refused and follow_up is not FollowUp.CHOOSING


def ended_elsewhere(life: Life, generation: int) -> Life:
    """The life once the store says so of `generation`; a newer grant stays what it is."""
    if life.state not in (State.ACTIVE, State.NEEDS_REAUTH) or life.generation > generation:
        return life
    changes = {
        "state": State.NEEDS_REAUTH,
        "reason": Code.GRANT_REVOKED_ELSEWHERE,
        "retry_at": None,
        "ask_at": None,
        "failures": 0,
    }
    return life.model_copy(update=changes)
