"""What a connection's life makes of the accounts that were looked up, and of the choice. Pure.

The lookup asks with the access token and spends nothing: it is tried again until it has an answer.
"""

from datetime import datetime

from evergrant_server.core.connection import State
from evergrant_server.core.errors import Code
from evergrant_server.core.message import Asked, Message
from evergrant_server.core.messages import Call, GrantNews, Life
from evergrant_server.core.schedule import Rules, retry_at

SIGNAL_CHOICE_MADE = "choice_made"


class LookUp(Call):
    """Ask the provider which accounts the grant reaches."""

    generation: int


class ChoiceMade(Message):
    """Somebody chose; the store says so already."""

    choice: str
    asked: Asked


def after_install(news: GrantNews, now: datetime) -> dict[str, object]:
    """What a grant that came leaves open."""
    return {"look_at": now if news.look_up else None, "look_ups": 0, "choosing": news.choosing}


def looked_up(life: Life, news: GrantNews, now: datetime, rules: Rules, share: float) -> Life:
    """An answer, or the moment of the next try."""
    if life.state is not State.ACTIVE or news.generation not in (None, life.generation):
        return life.model_copy(update={"look_at": None})  # another grant has a lookup of its own
    if news.failure is None:
        return life.model_copy(update={"look_at": None, "look_ups": 0, "choosing": news.choosing})
    tries = life.look_ups + 1
    again = retry_at(now, tries, news.failure, news.retry_after, rules, share)
    return life.model_copy(update={"look_ups": tries, "look_at": again})


def wants_token(life: Life, now: datetime) -> bool:
    """The lookup waits for a token that is good, and nothing else is about to bring one."""
    over = life.expires_at is not None and life.expires_at <= now
    return over and life.look_at is not None and life.refreshable and life.retry_at is None


def reason_of(life: Life) -> Code | None:
    """Why the connection can't be used as it is."""
    return life.reason or (Code.CHOICE_REQUIRED if life.choosing and life.state is State.ACTIVE else None)
