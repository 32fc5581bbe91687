"""A device code, and the interval between its polls (RFC 8628). Pure."""

from datetime import datetime
from enum import StrEnum

from evergrant_server.core.secret import SealableModel, Secret

DEFAULT_INTERVAL_S = 5.0  # RFC 8628 section 3.2: when the server doesn't say
_SLOWER_BY_S = 5.0  # section 3.5: for this and all later requests
_LONGEST_INTERVAL_S = 60.0


class DevicePoll(StrEnum):
    """The outcome of one poll whose reply has neither tokens nor a final error."""

    STARTED = "started"  # there is a code now, and no poll yet
    PENDING = "authorization_pending"
    SLOW_DOWN = "slow_down"
    NO_ANSWER = "no_answer"  # none in time, or a server error


def next_poll_interval(interval_s: float, poll: DevicePoll) -> float:
    """Seconds until the next request. It only ever grows (RFC 8628 section 3.5)."""
    if poll is DevicePoll.SLOW_DOWN:
        return interval_s + _SLOWER_BY_S
    if poll is DevicePoll.NO_ANSWER:
        return max(interval_s, min(interval_s * 2, _LONGEST_INTERVAL_S))
    return interval_s


class DeviceCode(SealableModel):
    """A device authorization response (RFC 8628 section 3.2).

    Never a message: the device code is as good as a token once the subject has approved it.
    """

    device_code: Secret
    user_code: str
    verification_uri: str
    verification_uri_complete: str | None = None
    expires_at: datetime
    interval_s: float = DEFAULT_INTERVAL_S
