"""What a connection's workflow is told to do next, and the life that goes with it. Pure."""

from dataclasses import dataclass
from enum import StrEnum

from evergrant_server.core.messages import Life


class Do(StrEnum):
    """What the workflow is told to do next."""

    NOTHING = "nothing"
    EXCHANGE_CODE = "exchange code"
    MINT = "mint"
    POLL = "ask about the device code"
    REFRESH = "refresh"
    REFRESH_IF_LEASED = "refresh if leased"
    END_CONSENT = "end consent"
    ASK_REVOCATION = "write revocation"
    REVOKE = "revoke at the provider"
    ANNOUNCE = "announce that the grant ends"
    VERIFY_LATE = "verify a late answer"
    LOOK_UP = "look up the accounts"


@dataclass(frozen=True)
class Step:
    """The life after what happened, and what to do now."""

    life: Life
    do: Do = Do.NOTHING
    denied: bool = False  # with END_CONSENT: said no, instead of ran out
    days: int = 0  # with ANNOUNCE: before the end
