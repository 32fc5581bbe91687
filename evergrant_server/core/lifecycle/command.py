"""What a decision is made from and what comes of it: moment, command, transition."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from evergrant_server.core.lifecycle.schedule import LifecycleRules
from evergrant_server.core.messages.connection import ConnectionState


class Command(StrEnum):
    """What the workflow does next, mostly by an activity."""

    NOTHING = "nothing"
    EXCHANGE_CODE = "exchange code"
    REQUEST_CLIENT_GRANT = "request client grant"
    POLL_DEVICE_TOKEN = "poll device token"
    REFRESH = "refresh"
    REFRESH_IF_LEASED = "refresh if leased"
    END_CONSENT = "end consent"
    LAPSE_CONSENT = "lapse consent"
    BEGIN_REVOCATION = "begin revocation"
    REVOKE = "revoke at the provider"
    ANNOUNCE_EXPIRY = "announce expiry"
    VERIFY_LATE_TOKENS = "verify late tokens"
    LOOK_UP_ACCOUNTS = "look up accounts"


@dataclass(frozen=True)
class Moment:
    """When and by which rules a decision is made. `share` in [0, 1) spreads a fleet."""

    now: datetime
    rules: LifecycleRules
    share: float


@dataclass(frozen=True)
class Transition:
    """The connection's state after an event, and the command that follows from it."""

    state: ConnectionState
    command: Command = Command.NOTHING
    denied: bool = False  # with END_CONSENT: the subject denied it; otherwise the deadline passed
    days_before_end: int = 0  # with ANNOUNCE_EXPIRY
    ends_at: datetime | None = None  # likewise: when the grant ends
