"""Checks by records of the audit log: checkpoints are signed and kept, and backups are tried out."""

from datetime import timedelta

from evergrant_server.audit.records import newest_drills
from evergrant_server.cli.doctor import COMMAND, CheckFailed
from evergrant_server.cli.doctor.keys import reading
from evergrant_server.core.clock import SystemClock
from evergrant_server.settings import Settings

UNSIGNED_LIMIT = timedelta(minutes=5)  # workers sign every five seconds
_SET_UP = "docs/guide/audit.md says how an anchor is set up"


async def checkpoints(settings: Settings) -> str:
    """Find trees that no worker signs, and anchors that have kept nothing for long or refuse."""
    now = SystemClock().now()
    async with reading(settings) as tx:
        key, newest = await tx.checkpoints.key(), await tx.checkpoints.newest()
        marked, anchors = await tx.checkpoints.marked(("", ""), 1), await tx.checkpoints.anchors()
        late = list[str]()
        for anchor in anchors.values():
            waiting = await tx.checkpoints.first_beyond(anchor.size)
            if waiting is not None and max(waiting.at, anchor.at) < now - settings.audit_anchor_late:
                why = f": {anchor.problem}" if anchor.problem else ""
                late.append(f"{anchor.name} has kept none since {anchor.at:%Y-%m-%d %H:%M} UTC{why}")
    if late:
        raise CheckFailed("; ".join(late), f"Look whether workers reach it; {_SET_UP}")
    if key is None or newest is None:
        return "no worker has signed the audit log yet"
    if marked and newest.at < now - UNSIGNED_LIMIT:
        raise CheckFailed(
            f"the last checkpoint is from {newest.at:%Y-%m-%d %H:%M} UTC, and there are newer records",
            f"Start a worker: {COMMAND} worker; its log says `checkpoint failed` with a reason",
        )
    kept = f"kept by {', '.join(sorted(anchors))}" if anchors else f"kept nowhere else: {_SET_UP}"
    return f"{key.name} is signed at {newest.tree.size} heads, {kept}"


async def backups(settings: Settings) -> str:
    """The last drill found nothing wrong, and isn't old. An installation that had none yet has no problem."""
    now, drill = SystemClock().now(), f"{COMMAND} backup drill"
    async with reading(settings) as tx:
        drills = await newest_drills(tx)
    if drills.last_at is None:
        return f"none was tried out yet: {drill}"
    if not drills.last_ok:
        why = f"the drill of {drills.last_at:%Y-%m-%d %H:%M} UTC found a backup that can't be relied on"
        raise CheckFailed(why, f"{drill}    # prints what is wrong with it")
    if drills.last_at < now - settings.backup_drill_interval:
        raise CheckFailed(f"the last drill is from {drills.last_at:%Y-%m-%d %H:%M} UTC", drill)
    return f"one was restored and found whole at {drills.last_at:%Y-%m-%d %H:%M} UTC"
