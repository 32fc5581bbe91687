"""What a connection's life makes of the accounts that were looked up, and of the choice. Pure.

The lookup asks with the access token and spends nothing: it is tried again until it has an answer.
"""

from datetime import datetime

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.lifecycle.schedule import LifecycleRules, retry_at
from evergrant_server.core.messages.base import Message, RequestContext
from evergrant_server.core.messages.connection import ConnectionCall, ConnectionState, GrantResult

SIGNAL_ACCOUNT_CHOSEN = "choice_made"


class LookUpAccounts(ConnectionCall):
    """Ask the provider which accounts the grant reaches."""

    generation: int


class AccountChosen(Message):
    """Somebody chose; the store says so already."""

    choice: str
    context: RequestContext


def lookup_after_install(news: GrantResult, now: datetime) -> dict[str, object]:
    """What a grant that came leaves open."""
    return {"look_at": now if news.look_up else None, "look_ups": 0, "choosing": news.choosing}


def after_account_lookup(
    life: ConnectionState, news: GrantResult, now: datetime, rules: LifecycleRules, share: float
) -> ConnectionState:
    """An answer, or the moment of the next try."""
    if life.state is not LifecycleState.ACTIVE or news.generation not in (None, life.generation):
        return life.model_copy(update={"look_at": None})  # another grant has a lookup of its own
    if news.failure is None:
        return life.model_copy(update={"look_at": None, "look_ups": 0, "choosing": news.choosing})
    tries = life.look_ups + 1
    again = retry_at(now, tries, news.failure, news.retry_after, rules, share)
    return life.model_copy(update={"look_ups": tries, "look_at": again})


def lookup_needs_refresh(life: ConnectionState, now: datetime) -> bool:
    """The lookup waits for a token that is good, and nothing else is about to bring one."""
    over = life.expires_at is not None and life.expires_at <= now
    return over and life.look_at is not None and life.refreshable and life.retry_at is None


def blocking_reason(life: ConnectionState) -> ErrorCode | None:
    """Why the connection can't be used as it is."""
    return life.reason or (
        ErrorCode.CHOICE_REQUIRED if life.choosing and life.state is LifecycleState.ACTIVE else None
    )
