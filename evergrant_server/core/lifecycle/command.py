"""What a connection's workflow is told to do next, and the life that goes with it. Pure."""

from dataclasses import dataclass
from enum import StrEnum

from evergrant_server.core.messages.connection import ConnectionState


class Command(StrEnum):
    """What the workflow is told to do next."""

    NOTHING = "nothing"
    EXCHANGE_CODE = "exchange code"
    REQUEST_CLIENT_GRANT = "mint"
    POLL_DEVICE_TOKEN = "ask about the device code"
    REFRESH = "refresh"
    REFRESH_IF_LEASED = "refresh if leased"
    END_CONSENT = "end consent"
    BEGIN_REVOCATION = "write revocation"
    REVOKE = "revoke at the provider"
    ANNOUNCE_EXPIRY = "announce that the grant ends"
    VERIFY_LATE_TOKENS = "verify a late answer"
    LOOK_UP_ACCOUNTS = "look up the accounts"


@dataclass(frozen=True)
class Transition:
    """The life after what happened, and what to do now."""

    state: ConnectionState
    command: Command = Command.NOTHING
    denied: bool = False  # with END_CONSENT: said no, instead of ran out
    days_before_end: int = 0  # with ANNOUNCE: before the end
