"""Upgrades, rolls back and upgrades again under load. Ends with 1 where a lease failed or a grant is lost.

python -m tests.upgrade [--from REVISION | --each] [--patched] [--connections 40] [--folder LOGS]
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from temporalio.api.enums.v1 import EventType

from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.process import exit_process
from tests.fakes import leftovers
from tests.upgrade.fleet import ALL, APIS, GATEWAY, WORKERS, Fleet, fleet, role_of
from tests.upgrade.load import TOKEN_S, Load, Provider
from tests.upgrade.trees import code_of, name_of, releases, this_checkout, with_changed_workflows

TENANT = Tenant("default")
_LEASING = 6
_BETWEEN_S = 2.0  # of work between two steps


def say(line: str) -> None:
    print(line, flush=True)


class Proof:
    """One run: its fleet, its load, and what each step did."""

    def __init__(self, here: Fleet, load: Load, older: Path, newer: Path) -> None:
        self.here, self.load, self.older, self.newer = here, load, older, newer

    @asynccontextmanager
    async def step(self, what: str) -> AsyncIterator[None]:
        """Count what happens meanwhile, and a little longer, for itself."""
        self.load.phase, began, refreshes = what, time.monotonic(), self.load.idp.refreshes
        yield
        await asyncio.sleep(_BETWEEN_S)
        tally, refreshes = self.load.now, self.load.idp.refreshes - refreshes
        say(
            f"  {time.monotonic() - began:6.1f} s  {what:<44} {tally.leases:5} leases, slowest "
            f"{tally.slowest_s:4.2f} s  {refreshes:4} refreshes  {tally.calls:4} calls  {tally.flows:3} flows"
            f"  {len(tally.failed)} failed"
        )
        for failed in tally.failed[:5]:
            say(f"            {failed}")

    async def roll(self, names: tuple[str, ...], tree: Path, word: str) -> None:
        for name in names:
            async with self.step(f"{name} is {word}"):
                await self.here.replace(name, tree)

    async def run(self) -> None:
        async with self.step("every process of the release before"):
            pass
        say(await self.here.command(self.newer, "doctor", "upgrade"))
        await self.follow_the_doctor("replaced by the newer", restarted=(WORKERS[0], APIS[0]))
        async with self.step("db upgrade by the older code"):  # as an `init` of it does
            say(f"            {await self.here.upgrade(self.older)}")
        await self.roll(tuple(reversed(ALL)), self.older, "rolled back")
        await self.follow_the_doctor("replaced again")
        async with self.step("every process of the newer"):
            await asyncio.sleep(TOKEN_S)
        say(await self.here.command(self.newer, "doctor", "upgrade"))

    async def follow_the_doctor(self, word: str, restarted: tuple[str, ...] = ()) -> None:
        """Do what `doctor upgrade` calls the next step, once it is safe, until nothing is left. After the
        migration restart some with the older code."""
        older = list(ALL)
        while (advice := await self.advice())["step"] != "done":
            if not (advice["safe"] or advice["role"] == GATEWAY):  # there is one: its gap is counted
                await asyncio.sleep(1)  # until who was replaced has said that it lives
            elif advice["step"] == "migrate":
                async with self.step("db upgrade by the newer code"):
                    say(f"            {await self.here.upgrade(self.newer)}")
                await self.roll(restarted, self.older, "restarted with the older code")
            else:
                name = next(name for name in older if role_of(name) == advice["role"])
                older.remove(name)
                await self.roll((name,), self.newer, word)

    async def advice(self) -> dict[str, Any]:
        """What `doctor upgrade` of the newer code says is next."""
        said = await self.here.command(self.newer, "doctor", "upgrade", "-o", "json", status=None)
        return json.loads(said)["next"]

    async def lost(self) -> list[str]:
        """The connections that no longer work: not active, or without a token that the provider knows."""
        lost = list[str]()
        self.load.phase = "afterwards"
        async with self.load.client() as app:
            for connection in self.load.connections:
                state = await self.load.state_of(app, connection)
                if state != "active" or not await self.load.lease_once(app, connection):
                    lost.append(f"{connection} ({state})")
        return lost

    async def failed_tasks(self) -> int:
        """In the histories of the connections' current runs; a repetition that fails too leaves no event."""
        client = await self.here.temporal.client()
        ids = [connection_workflow_id(TENANT, ConnectionId(id)) for id in self.load.connections]
        histories = [await client.get_workflow_handle(id).fetch_history() for id in ids]
        events = [event.event_type for history in histories for event in history.events]
        return events.count(EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED)


async def prove(folder: Path, since: str, until: str, given: argparse.Namespace) -> bool:
    """Run it; True when nothing failed and nothing is lost."""
    older, newer = code_of(since, folder / "older"), code_of(until, folder / "newer")
    if given.patched:
        newer = with_changed_workflows(newer)
    say(f"==> from {name_of(since)}\n    to   {name_of(until)}")
    say(f"    {given.connections} connections, tokens of {TOKEN_S} s")
    async with Provider() as idp, fleet(folder, older, idp.allowance) as here:
        key = folder / "admin.key"
        await here.command(older, "keys", "bootstrap", "--out", str(key))
        load = Load(idp, here.url, here.gateway_url, key.read_text().strip())
        await load.prepare(given.connections)
        proof, end = Proof(here, load, older, newer), asyncio.Event()
        apps = [asyncio.create_task(load.lease(end)) for _ in range(_LEASING)]
        apps += [asyncio.create_task(load.call(end)), asyncio.create_task(load.come_and_go(end))]
        try:
            await proof.run()
        finally:
            end.set()
            await asyncio.gather(*apps)
        lost = await proof.lost()
        say(f"workflow tasks that a worker failed at first: {await proof.failed_tasks()}")
        ended = sum(not family.alive for family in load.families)
    return report(here, load, lost, ended)


def report(here: Fleet, load: Load, lost: list[str], ended: int) -> bool:
    tallies = load.tallies.values()
    failed = [text for tally in tallies for text in tally.failed]
    say(
        f"leases {sum(it.leases for it in tallies)}, calls {sum(it.calls for it in tallies)}, connected and "
        f"revoked {sum(it.flows for it in tallies)}, refreshes {load.idp.refreshes}; processes replaced "
        f"{len(here.stops_s)}, slowest stop {max(here.stops_s):.1f} s; gateway away "
        f"{sum(it.gateway_away_s for it in tallies):.1f} s in all"
    )
    for problem in (*failed, *here.problems, *lost):
        say(f"  {problem}")
    say(
        f"failed {len(failed)}, lost {len(lost)} of {len(load.connections)}, grants that the provider ended "
        f"{ended}, refresh tokens sent twice {load.idp.spent_twice}, "
        f"processes that ended badly {len(here.problems)}"
    )
    return not (failed or lost or ended or load.idp.spent_twice or here.problems)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.upgrade", description=__doc__)
    parser.add_argument("--from", dest="since", help="the release before; default: the schema before")
    parser.add_argument("--each", action="store_true", help="every schema that was promised, oldest first")
    parser.add_argument(
        "--patched", action="store_true", help="the newer one has changed every workflow (workflow.patched)"
    )
    parser.add_argument("--connections", type=int, default=40)
    parser.add_argument("--folder", type=Path, help="where logs stay; default: a folder that is deleted")
    return parser.parse_args()


async def main(given: argparse.Namespace) -> int:
    pairs = [(given.since, this_checkout())] if given.since else releases()
    failed = False
    with tempfile.TemporaryDirectory(prefix="evergrant-upgrade-") as name:
        for since, until in pairs if given.each else pairs[-1:]:
            folder = Path(tempfile.mkdtemp(dir=given.folder or name))
            failed |= not await prove(folder, since, until, given)
    return int(failed)


if __name__ == "__main__":
    leftovers.watch()
    status = asyncio.run(main(arguments()))
    sys.stdout.flush()
    exit_process(status)
