"""What the doctor's checks have in common."""

from datetime import datetime, timedelta

COMMAND = "python -m evergrant_server"
MAX_SKEW = timedelta(seconds=5)  # further apart, tokens look expired that aren't, and the reverse
CLOCK_REPAIR = "timedatectl set-ntp true    # on the host whose clock is wrong"


class CheckFailed(Exception):
    """Something is wrong; `repair` is the command, or the setting, that makes it right."""

    def __init__(self, what: str, repair: str) -> None:
        super().__init__(what)
        self.detail = what
        self.repair = repair


def compare_clocks(theirs: datetime, before: datetime, after: datetime, whose: str) -> str:
    """How far `theirs` is outside of the time in which it was asked for. Raises Problem above SKEW."""
    ahead = max(theirs - after, timedelta(0)) - max(before - theirs, timedelta(0))
    seconds = ahead.total_seconds()
    if abs(ahead) > MAX_SKEW:
        where = "ahead of" if seconds > 0 else "behind"
        raise CheckFailed(f"{whose} clock is {abs(seconds):.1f} s {where} this host's", CLOCK_REPAIR)
    return (
        f"{whose} clock and this host's agree within {abs(seconds) + (after - before).total_seconds():.1f} s"
    )
