"""One proof: each kind of rotation under load, with a SIGKILL of each process in each of its steps."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evergrant_server.core.key_rotation import RotationKind
from tests.faults.rotation.place import Place, running_place

_LONGEST_S = 3600.0
KINDS = (RotationKind.TENANT, RotationKind.CONNECTION)


@dataclass
class Result:
    """What a proof has measured, and what was wrong."""

    lines: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


async def prove(
    folder: Path,
    database_url: str,
    *,
    connections: int,
    readers: int,
    refreshing: int,
    kills: bool,
    say: Callable[[str], None],
    kinds: Sequence[RotationKind] = KINDS,
) -> Result:
    """Rotate the keys of the tenant, and then of its connections, under load."""
    result = Result()
    began = time.monotonic()
    async with running_place(folder, database_url, connections, refreshing) as place:
        say(f"{connections} connections are there after {time.monotonic() - began:.0f} s")
        async with place.under_load(readers):
            for kind in kinds:
                await _rotate(place, kind, kills, result, say)
        result.wrong += place.counts.wrong
        broken = await place.unreadable()
        result.wrong += broken
        counts = place.counts
        line = (
            f"{counts.leases} leases, {counts.refused} failed, {counts.cut} cut by a SIGKILL and sent again; "
        )
        line += f"{counts.refreshes} refreshes, {counts.late} late; {len(broken)} unreadable"
        result.lines.append(line)
        say(line)
        if not counts.leases or not counts.refreshes:
            result.wrong.append("there was no load")
    return result


async def _rotate(
    place: Place, kind: RotationKind, kills: bool, result: Result, say: Callable[[str], None]
) -> None:
    before = {key["purpose"]: key["key_id"] for key in (await place.admin("GET", "/v1/keys"))["keys"]}
    began, killed, seen = time.monotonic(), 0, set[str]()
    await place.admin("POST", "/v1/keys/rotations", json={"kind": kind})
    while True:
        rotation = await _newest(place, kind)
        step = rotation.get("step")
        if rotation.get("done"):
            break
        if kills and step is not None and step not in seen:
            seen.add(step)
            for member in place.members:
                say(f"{kind}, {step}: SIGKILL of {member.process.pid_file.parent.name}")
                await member.kill()
                killed += 1
        if time.monotonic() - began > _LONGEST_S:
            result.wrong.append(f"the rotation of a {kind} doesn't end: {rotation}")
            return
        await asyncio.sleep(0.05)
    seconds = time.monotonic() - began
    line = (
        f"{kind}: {rotation['moved']} rows in {seconds:.1f} s, {rotation['moved'] / seconds:.0f} a second; "
        f"{rotation['replaced']} keys new, {rotation['destroyed']} destroyed, {rotation['kept']} kept, "
        f"{rotation['left']} left; {killed} SIGKILLs"
    )
    result.lines.append(line)
    say(line)
    await _check(place, kind, rotation, before, result)


async def _newest(place: Place, kind: RotationKind) -> dict[str, Any]:
    """How far the rotation is; nothing while no worker answers."""
    rotations = (await place.admin("GET", "/v1/keys/rotations")).get("items", [])
    return next((rotation for rotation in rotations if rotation["kind"] == kind), {})


async def _check(
    place: Place, kind: RotationKind, rotation: dict[str, Any], before: dict[str, Any], result: Result
) -> None:
    """Nothing of the old keys is left, and the new ones are others."""
    for key in (await place.admin("GET", "/v1/keys"))["keys"]:
        if kind is RotationKind.TENANT and key["key_id"] and key["key_id"] == before[key["purpose"]]:
            result.wrong.append(f"the key {key['key_id']} of {key['purpose']} is still the current one")
        if kind is RotationKind.TENANT and (key["replaced"] or key["left"]):
            result.wrong.append(
                f"{key['purpose']}: {key['replaced']} old keys with {key['left']} values are left"
            )
        if kind is RotationKind.CONNECTION and key["replaced_connection_keys"] > rotation["kept"]:
            result.wrong.append(f"{key['purpose']}: {key['replaced_connection_keys']} old keys are left")
