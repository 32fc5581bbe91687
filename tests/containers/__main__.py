"""`make containers`: the image of this commit, and the compose file, on a real Docker server.

    python -m tests.containers [--before COMMIT]

Debian's tools and base images are made once, in build/containers, and used again. Needs root, since it makes
namespaces; installs nothing, and leaves nothing else on this machine. Prints the seconds of each step, and
one line at the end.
"""

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.containers import FOLDER, ROOT
from tests.containers.images import base_images, build, checkout, load_postgres
from tests.containers.machine import StepFailed, checked, running_docker, unpack_tools

_STORY_S = 1800


async def main(before: str, scratch: Path) -> str:
    """The line of the end. Raises StepFailed."""
    began = time.monotonic()
    await asyncio.to_thread(FOLDER.mkdir, parents=True, exist_ok=True)
    await unpack_tools()
    places = {name: scratch / name for name in ("before", "after")}
    for name, commit in (("before", before), ("after", "HEAD")):
        checkout(commit, places[name])
    async with running_docker(scratch) as machine:
        await base_images(machine)
        archives = [Path(f"{place}.tar") for place in places.values()]
        sizes = [
            await build(machine, place, tar) for place, tar in zip(places.values(), archives, strict=True)
        ]
        await load_postgres(machine)
        prepared = time.monotonic() - began
        print(f"  {'prepared':<18} {prepared:6.1f} s", flush=True)
        report = scratch / "report.json"
        temporal = Path(sys.executable).parent / "temporal"
        words = map(str, (*places.values(), *archives, temporal, report))
        env = {"PYTHONPATH": f"{ROOT}:{ROOT / 'clients/python/src'}", "PYTHONUNBUFFERED": "1"}
        story = (sys.executable, "-m", "tests.containers.story", *words)
        await machine.run(*story, env=env, within_s=_STORY_S, shown=True)
        seconds = json.loads(await asyncio.to_thread(report.read_text, encoding="utf-8"))
    restarts = sum(name.startswith("restart ") for name in seconds)
    return (
        f"containers: image of {sizes[-1] / 1e6:.0f} MB, up, consent, lease, upgrade from {before[:8]}, "
        f"doctor in 4 containers, refresh, {restarts} restarts, down and up: "
        f"good in {sum(seconds.values()):.0f} s, after {prepared:.0f} s of preparation"
    )


def commit_before() -> str:
    """The commit before the newest migration, so that the upgrade has one to carry out."""
    newest = checked(["git", "log", "-1", "--format=%H", "--", "migrations/versions"])
    return checked(["git", "rev-parse", f"{newest}^"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", default="", help="the commit to upgrade from")
    given = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("make containers: it needs root, since it makes namespaces: sudo make containers")
    if shutil.which("apt-get") is None or shutil.which("unshare") is None:
        sys.exit("make containers: it needs Debian's apt-get, and unshare and nsenter of util-linux")
    folder = Path(tempfile.mkdtemp(prefix="evergrant-containers-"))
    try:
        print(asyncio.run(main(given.before or commit_before(), folder)))
    except StepFailed as failed:
        sys.exit(f"containers: FAILED\n{failed}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
