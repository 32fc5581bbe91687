"""Eight processes share one file of tokens over 1,000 expiries; then a thief replays an old one. A part of
`make soak`.

    python -m tests.faults.token_file [--expiries 1000] [--processes 8]
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from evergrant_server.core.oauth.authorizations import LATE_REPLAYS
from tests.faults.token_file.sharing import Sharing, sharing


async def main(expiries: int, processes: int) -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="evergrant-tokens-") as folder:
        async with sharing(Path(folder), processes, expiries) as shared:
            while shared.counts.expiries < expiries and not shared.counts.lost:
                await shared.expire()
                if shared.counts.expiries % 100 == 0:
                    print(f"  {shared.counts.expiries} expiries", flush=True)
            good = await _shown(shared, processes)
            good &= await _robbed(shared)
    print(f"{time.monotonic() - began:.0f} s")
    return 0 if good else 1


async def _shown(shared: Sharing, processes: int) -> bool:
    counts, rotations, upstream = shared.counts, await shared.rotations(), shared.idp
    sent = upstream.count("token", grant_type="refresh_token")
    alarms = await shared.alarms()
    print(
        f"{processes} processes, one file of tokens, {counts.expiries} expiries: "
        f"{len(counts.lost)} lost sessions, {counts.calls} calls\n"
        f"  {counts.refreshes} refreshes, {rotations} successors, "
        f"{counts.refreshes - rotations} repetitions that got the same one, {alarms} alarms\n"
        f"  the MCP server's authorization server saw {sent} refreshes, carried out {upstream.refreshes}, "
        f"and its grant is {'alive' if upstream.families[0].alive else 'dead'}"
    )
    for lost in counts.lost:
        print(f"  lost: {lost}")
    once = sent == upstream.refreshes == rotations == counts.expiries
    complete = counts.calls == processes * counts.expiries
    return once and complete and not counts.lost and not alarms and upstream.families[0].alive


async def _robbed(shared: Sharing) -> bool:
    thief, call, refresh = await shared.robbed()
    alarms, alive = await shared.alarms(), shared.idp.families[0].alive
    print(
        f"a thief replays the first refresh token: {thief}; the next call: {call}, "
        f"the next refresh: {refresh}; {alarms} alarm; upstream the grant is {'alive' if alive else 'dead'}"
    )
    times = await shared.repeated()
    print(f"a thief repeats a used one every 90 s: {times} times, then its authorization has ended")
    return (thief, call, refresh, alarms, alive, times) == (400, 401, 400, 1, True, LATE_REPLAYS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.faults.token_file")
    parser.add_argument("--expiries", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=8)
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.expiries, given.processes)))
