"""One proof: each kind of rotation under load, with a SIGKILL of each process in each of its steps."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evergrant_server.core.key_rotation import RotationKind, RotationStep
from evergrant_server.crypto import ROOT_PURPOSES, KeyPurpose
from evergrant_server.crypto.root_keys import RootState
from tests.faults.rotation import stale
from tests.faults.rotation.gate import Passage, Strikes
from tests.faults.rotation.load import Tally
from tests.faults.rotation.members import Onlooker
from tests.faults.rotation.place import Place, Size, running_place
from tests.faults.rotation.walk import Seen

KINDS = tuple(RotationKind)
_STRUCK = KeyPurpose.REFRESH  # the root with the most under it: in its rotation everybody is killed
_LONGEST_S = 3600.0
_WAITS = (RotationStep.HOLD, RotationStep.DESTROY)


@dataclass
class Proof:
    """What was proven, line by line, and what was wrong."""

    place: Place
    walk: Onlooker
    strikes: Strikes | None
    say: Callable[[str], None]
    purposes: Sequence[KeyPurpose] = ROOT_PURPOSES
    wrong: list[str] = field(default_factory=list)

    async def rotate(self, kind: RotationKind) -> None:
        if kind is not RotationKind.ROOT:
            await self._rotate_tenants(kind)
            return
        if self.place.service == "file-to-openbao":
            await self._move()
            return
        for purpose in self.purposes:
            if self.place.service == "file":
                await self._rotate_file(purpose)
            else:
                await self._rotate_root(purpose)

    async def _rotate_tenants(self, kind: RotationKind) -> None:
        """The keys of the tenant, or of its connections."""
        place = self.place
        before = {key["purpose"]: key["key_id"] for key in (await place.admin("GET", "/v1/keys"))["keys"]}

        async def ended() -> dict[str, Any]:
            await place.admin("POST", "/v1/keys/rotations", json={"kind": kind})
            ends = time.monotonic() + _LONGEST_S
            while time.monotonic() < ends:
                rotations = (await place.admin("GET", "/v1/keys/rotations")).get("items", [])
                newest = [rotation for rotation in rotations if rotation["kind"] == kind]
                if newest and newest[0]["done"]:
                    return newest[0]
                await asyncio.sleep(0.25)
            raise TimeoutError(f"the rotation of a {kind} doesn't end")

        rotation = await self._measured(str(kind), self._watch(self.strikes), ended)
        for key in (await place.admin("GET", "/v1/keys"))["keys"]:
            self.wrong += _left(kind, key, rotation, before)

    async def _rotate_root(self, purpose: KeyPurpose) -> None:
        """The root of a purpose, which the key service wraps."""
        before = await self.place.root_states(purpose)
        api = stale.Stale(self.place, self.say) if purpose is stale.PURPOSE else None
        strikes = self.strikes if purpose is _STRUCK else None
        words = ("keys", "rotate", purpose.value, "-o", "json")
        await self._measured(f"root {purpose}", self._watch(strikes, api), lambda: self._progress(*words))
        if api is not None:
            await api.over()
            self.wrong += api.wrong
        after = await self.place.root_states(purpose)
        if any(after[id] is not RootState.RETIRED for id in before) or set(after) == set(before):
            self.wrong.append(f"the roots of {purpose}: {before}, and then {after}")

    async def _rotate_file(self, purpose: KeyPurpose) -> None:
        """The root of a purpose, which lies in the key file: by the commands of operations.md."""
        await self.place.command("keys", "rotate", purpose.value)
        await self.place.restart(self.walk)
        strikes = self.strikes if purpose is _STRUCK else None
        words = ("keys", "rewrap", purpose.value, "-o", "json")
        await self._measured(f"root {purpose}", self._watch(strikes), lambda: self._progress(*words))

    async def _move(self) -> None:
        """Everything that the key file wraps, to OpenBao: by the commands of docs/security/keys.md."""
        place = self.place
        place.services.name("openbao", before="file")
        await place.restart(self.walk)
        await place.command("keys", "create")
        words = ("keys", "rotate", "all", "-o", "json")
        await self._measured(
            "all roots, to OpenBao", self._watch(self.strikes), lambda: self._progress(*words)
        )
        place.ready.settings.key_path.rename(place.folder / "unused.json")
        place.services.name("openbao")
        await place.restart(self.walk)

    async def _progress(self, *words: str) -> dict[str, Any]:
        """What a command of the host says of its rotation, once that is over."""
        return json.loads(await self.place.command(*words))["progress"]

    def _watch(
        self, strikes: Strikes | None, api: "stale.Stale | None" = None
    ) -> Callable[[Passage], Awaitable[None]]:
        async def watch(passage: Passage) -> None:
            if api is not None:
                await api.watch(passage)
            if strikes is not None:
                await strikes.strike(passage)
            if passage.step == RotationStep.DESTROY and passage.passes:
                await self.place.let_time_pass(kept="" if api is None else api.id)

        return watch

    async def _measured(
        self,
        name: str,
        watch: Callable[[Passage], Awaitable[None]],
        ended: Callable[[], Awaitable[dict[str, Any]]],
    ) -> dict[str, Any]:
        """Have a rotation run to its end, and say what it took."""
        gate, calls, began = self.place.gate, self.place.calls(), time.monotonic()
        killed = len(self.strikes.done) if self.strikes is not None else 0
        gate.times.clear()
        gate.watch = watch
        rotation = await ended()
        seconds = gate.seconds(time.monotonic())
        if self.strikes is not None:
            await self.strikes.over()
            killed = len(self.strikes.done) - killed
        work = sum(taken for step, taken in seconds.items() if step not in _WAITS)
        steps = ", ".join(f"{step} {taken:.1f}" for step, taken in seconds.items())
        self.say(
            f"{name}: {rotation['moved']:,} rows in {time.monotonic() - began:.1f} s, "
            f"{rotation['moved'] / max(work, 0.001):.0f} a second without the waits ({steps}); "
            f"{rotation['replaced']} keys new, {rotation['destroyed']} destroyed, {rotation['kept']} kept, "
            f"{rotation['left']} left, {rotation['broken']} broken; {killed} SIGKILLs; "
            f"calls of the key service: {dict(self.place.calls() - calls) or 'none'}"
        )
        if rotation["broken"] or rotation["left"] or rotation["kept"]:
            self.wrong.append(f"{name}: {rotation}")
        return rotation


def _left(
    kind: RotationKind, key: dict[str, Any], rotation: dict[str, Any], before: dict[str, Any]
) -> list[str]:
    """What is wrong with the tenant's keys of a purpose after a rotation."""
    if kind is RotationKind.CONNECTION:
        left = key["replaced_connection_keys"] > rotation["kept"]
        return [f"{key['purpose']}: {key['replaced_connection_keys']} old keys are left"] if left else []
    wrong: list[str] = []
    if key["key_id"] and key["key_id"] == before[key["purpose"]]:
        wrong.append(f"the key {key['key_id']} of {key['purpose']} is still the current one")
    if key["replaced"] or key["left"]:
        wrong.append(f"{key['purpose']}: {key['replaced']} old keys with {key['left']} values are left")
    return wrong


async def prove(
    folder: Path,
    database_url: str,
    size: Size,
    *,
    service: str,
    kinds: Sequence[RotationKind] = KINDS,
    purposes: Sequence[KeyPurpose] = ROOT_PURPOSES,
    seconds: float = 0.0,
    kills: bool = False,
    steps: Collection[str] = (),
    say: Callable[[str], None],
) -> list[str]:
    """What was wrong. `purposes` are those of the roots that are rotated; `seconds` is for how long the same
    load runs before, without a rotation; `steps`: those in which processes are killed, none: in each."""
    began = time.monotonic()
    async with running_place(folder, database_url, size, service) as place:
        filled = f"{size.connections:,} connections, {await place.keys():,} keys"
        say(f"{filled} after {time.monotonic() - began:.0f} s")
        wrong: list[str] = []
        if seconds:
            async with place.under_load(), place.watched():
                await asyncio.sleep(seconds)
            wrong += judged("without a rotation", place.tally, place.seen, say=say)
            place.tally, place.seen = Tally(), Seen()
        strikes = Strikes(place.members, size.seed, steps, say) if kills else None
        async with place.under_load(), place.watched() as walk:
            proof = Proof(place, walk, strikes, say, purposes)
            for kind in kinds:
                await proof.rotate(kind)
        wrong += (
            place.gate.wrong
            + proof.wrong
            + judged("while keys were rotated", place.tally, place.seen, say=say)
        )
        say((await place.command("authority", "verify")).strip())
        if strikes is not None:
            wrong += _not_struck(place, strikes, kinds)
    return wrong


def judged(when: str, tally: Tally, seen: Seen, *, say: Callable[[str], object]) -> list[str]:
    """What readers, callers that refresh, and walks have seen that they may not see."""
    say(
        f"{when}: {tally.leases:,} leases, {len(tally.failed)} failed; "
        f"asked again after {tally.answers or 'no other answer'}, {tally.cut} cut by a SIGKILL; "
        f"the slowest took {tally.slowest_s:.1f} s; "
        f"{tally.refreshes} refreshes, others were answered {tally.refresh_answers or 'nothing'}"
    )
    say(
        f"{when}: {len(seen.unreadable)} unreadable in {seen.walks} walks over {seen.keys:,} keys and "
        f"{seen.values:,} values"
    )
    wrong = [f"{when}: {each}" for each in (*tally.failed, *seen.unreadable)]
    if not tally.leases or not tally.refreshes or not seen.values:
        wrong.append(f"{when}: there was no load")
    return wrong


def _not_struck(place: Place, strikes: Strikes, kinds: Sequence[RotationKind]) -> list[str]:
    """Processes that weren't killed in a step that was passed."""
    steps = {(kind, step) for kind, step, _ in strikes.done}
    missing = [kind for kind in kinds if kind not in {kind for kind, _ in steps}]
    return [f"nobody was killed in a rotation of a {kind}" for kind in missing] + [
        f"{kind}, {step}: {member.name} wasn't killed"
        for kind, step in sorted(steps)
        for member in place.members
        if (kind, step, member.name) not in strikes.done
    ]
