"""`doctor upgrade`: which code runs where, and whether the next step of an upgrade is safe now.

Processes say themselves what they are (`store.rotation.processes`); what is decided here only reads.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Literal, NamedTuple

from evergrant_server import __version__
from evergrant_server.cli.doctor import COMMAND
from evergrant_server.core.clock import SystemClock
from evergrant_server.crypto import Role
from evergrant_server.settings import Settings
from evergrant_server.store.database import schema
from evergrant_server.store.database.schema import Stamp
from evergrant_server.store.rotation.processes import (
    Process,
    ProcessState,
    read_processes,
    that_go_on,
    too_old,
)

# Who reads what a newer process writes comes before who writes it; a roll-back goes the other way.
ORDER = (Role.WORKER.value, Role.GATEWAY.value, Role.API.value)
_WITHOUT = {
    Role.WORKER.value: "nothing is refreshed until it is back; tokens that are valid are leased",
    Role.GATEWAY.value: "calls through the gateway are refused until it is back",
    Role.API.value: "leases are refused until it is back",
}


class Release(NamedTuple):
    """What a release's code is: its version, its schema, and the oldest code that works with that."""

    version: str
    schema: str
    oldest_code: str


class UpgradeStep(StrEnum):
    MIGRATE = "migrate"
    REPLACE = "replace"
    WAIT = "wait"
    DONE = "done"
    OTHER_CODE = "other code"


@dataclass(frozen=True)
class Advice:
    """The next step, whether it is safe now and why, what carries it out, and whose role is replaced."""

    step: UpgradeStep
    safe: bool
    detail: str
    command: str = ""
    role: str = ""


def this_release() -> Release:
    return Release(__version__, schema.expected_version(), schema.OLDEST_CODE)


def next_step(stamp: Stamp | None, processes: Sequence[Process], release: Release) -> Advice:
    """What comes next on the way to every process being of this release."""
    if stamp is None or (not stamp.is_newer and not stamp.suits):
        return _migration(stamp, processes, release)
    if not stamp.suits:
        why = f"schema {stamp.version} works with code of {stamp.oldest_code or stamp.version} and later"
        return Advice(
            UpgradeStep.OTHER_CODE, False, f"{why}, and this is {release.schema}", "Take a newer release"
        )
    live = [process for process in processes if process.state is ProcessState.LIVE]
    if others := [process for process in live if not _is_of(process, release)]:
        return _replacement(others, that_go_on(live), is_back=stamp.is_newer)
    if silent := [it for it in processes if it.state is ProcessState.SILENT and not _is_of(it, release)]:
        why = f"{_named(silent[0])} fell silent {silent[0].silent_for.seconds} s ago and may come back"
        return Advice(UpgradeStep.WAIT, False, why, "Wait ten minutes, or make sure that it has ended")
    done = "every process is of this release: what is new in it may be used, and the next one may come"
    return Advice(UpgradeStep.DONE, True, done)


def _migration(stamp: Stamp | None, processes: Sequence[Process], release: Release) -> Advice:
    before = "an empty database" if stamp is None else f"schema {stamp.version}"
    if ended := too_old(processes, release.oldest_code):
        why = f"{_named(ended[0])} doesn't work with schema {release.schema}"
        return Advice(
            UpgradeStep.MIGRATE, False, why,
            f"Replace it by a release of schema {release.oldest_code} or later first, or stop it",
        )  # fmt: skip
    why = f"{before} becomes {release.schema}, and every live process goes on with that"
    return Advice(
        UpgradeStep.MIGRATE, True, why, f"{COMMAND} db upgrade    # with the roles of the processes"
    )


def _replacement(others: list[Process], going_on: list[Process], *, is_back: bool) -> Advice:
    """The first of these to replace. Safe beside one that has written since its role last started on its
    host: of two that live there, the later one may have taken the place of the other."""
    order = tuple(reversed(ORDER)) if is_back else ORDER
    others = sorted(others, key=lambda process: order.index(process.role))
    process = others[0]
    beside = [it for it in going_on if (it.role, it.id != process.id) == (process.role, True)]
    rest = f"; {len(others) - 1} more after it" if len(others) > 1 else ""
    if not beside:
        why = f"{_named(process)} is the only one that lives: {_WITHOUT[process.role]}{rest}"
        beside_it = "Start another one beside it first, or accept that gap"
        return Advice(UpgradeStep.REPLACE, False, why, beside_it, process.role)
    why = f"{len(beside)} of its role go on meanwhile{rest}"
    return Advice(UpgradeStep.REPLACE, True, why, f"Replace {_named(process)} by this release", process.role)


def _is_of(process: Process, release: Release) -> bool:
    return (process.version, process.schema_version) == (release.version, release.schema)


def _named(process: Process) -> str:
    code = f"schema {process.schema_version}" if process.schema_version else "a schema before 0019"
    return f"the {process.role} on {process.host} ({process.version}, {code})"


async def run(settings: Settings, output: Literal["text", "json"]) -> bool:
    """Print what runs and what comes next; True when that is safe now. Raises Failure STORE_UNAVAILABLE."""
    release, stamp = this_release(), await schema.read_stamp(settings.database_url)
    processes = [] if stamp is None else await read_processes(settings.database_url, SystemClock().now())
    seen = [process for process in processes if process.state is not ProcessState.GONE]
    advice = next_step(stamp, seen, release)
    if output == "json":
        print(json.dumps(_document(stamp, seen, release, advice), indent=1))
    else:
        _print(stamp, seen, release, advice)
    return advice.safe


def _document(
    stamp: Stamp | None, processes: list[Process], release: Release, advice: Advice
) -> dict[str, object]:
    return {
        "database": None if stamp is None else {"schema": stamp.version, "oldest_code": stamp.oldest_code},
        "code": {"version": release.version, "schema": release.schema, "oldest_code": release.oldest_code},
        "processes": [
            {
                "role": process.role,
                "host": process.host,
                "version": process.version,
                "schema": process.schema_version,
                "state": process.state.value,
                "started_at": process.started_at.isoformat(),
                "is_of_this_release": _is_of(process, release),
            }
            for process in processes
        ],
        "next": asdict(advice),
    }


def _print(stamp: Stamp | None, processes: list[Process], release: Release, advice: Advice) -> None:
    print(f"this code  {release.version}, schema {release.schema}")
    works = (
        ""
        if stamp is None or not stamp.oldest_code
        else f", works with code of {stamp.oldest_code} and later"
    )
    print("database   empty" if stamp is None else f"database   schema {stamp.version}{works}")
    for process in sorted(processes, key=lambda process: (ORDER.index(process.role), process.host)):
        code = f"{process.version}, schema {process.schema_version or 'before 0019'}"
        since = f"since {process.started_at:%Y-%m-%d %H:%M} UTC"
        other = "" if _is_of(process, release) else "  of another release"
        print(f"{process.role:<9}  {process.host}  {code}, {process.state.value}, {since}{other}")
    print(f"next       {advice.step.value}{': ' + advice.command if advice.command else ''}")
    print(f"safe now   {'yes' if advice.safe else 'NO'}: {advice.detail}")
