"""`doctor`: checks of everything that an installation needs, each with the command that repairs it.

Owns the checks (`host`, `keys`, `database`, `configuration`, `temporal`), the table of them and their output
(`report`). A check changes nothing. Doesn't repair anything itself. What the checks share is here: how they
fail, and the comparison of two clocks.
"""

from datetime import datetime, timedelta

from evergrant_server.core.errors import Failure

COMMAND = "python -m evergrant_server"
MAX_SKEW = timedelta(seconds=5)  # with a larger difference, valid tokens look expired and the other way round
CLOCK_REPAIR = "timedatectl set-ntp true    # on the host whose clock is wrong"


class CheckFailed(Exception):
    """A check found a problem. `repair` is the command or the setting that solves it."""

    def __init__(self, problem: str, repair: str) -> None:
        super().__init__(problem)
        self.detail = problem
        self.repair = repair


def compare_clocks(theirs: datetime, before: datetime, after: datetime, whose: str) -> str:
    """How far `theirs` is outside the interval in which it was read. Raises CheckFailed above MAX_SKEW."""
    ahead = max(theirs - after, timedelta(0)) - max(before - theirs, timedelta(0))
    seconds = ahead.total_seconds()
    if abs(ahead) > MAX_SKEW:
        where = "ahead of" if seconds > 0 else "behind"
        raise CheckFailed(f"{whose} clock is {abs(seconds):.1f} s {where} this host's", CLOCK_REPAIR)
    return (
        f"{whose} clock and this host's agree within {abs(seconds) + (after - before).total_seconds():.1f} s"
    )


def unreachable(failure: Failure) -> CheckFailed:
    return CheckFailed(
        failure.detail,
        "Start the database, or correct EVERGRANT_DATABASE_URL (and EVERGRANT_DATABASE_PASSWORD_FILE)",
    )
