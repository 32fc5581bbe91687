"""`make frameworks`: each example of examples/frameworks in an environment of its own, with a scripted model.

MCP and OAuth are real: the platform as `dev` starts it, and the TypeScript SDK's example server.
"""

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.frameworks.environments import ROOT, Environment, install, names
from tests.frameworks.models.script import EXPECTED
from tests.frameworks.world import connected_tools

_WITHIN_S = 600  # of one example: a busy machine imports a large framework in a minute
# no request to anyone but the servers of this run
_SILENT = {
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "OTEL_SDK_DISABLED": "true",
    "LANGSMITH_TRACING": "false",
}


async def main(selected: list[str]) -> int:
    known = names()
    if unknown := set(selected) - set(known):
        print(f"no lock file for {', '.join(sorted(unknown))}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    folder = ROOT / "build" / "frameworks"
    folder.mkdir(parents=True, exist_ok=True)
    environments = [await install(name, folder) for name in selected or known]
    bad = 0
    with tempfile.TemporaryDirectory(prefix="evergrant-frameworks-") as data:
        async with connected_tools(Path(data) / "data") as own:
            for environment in environments:
                bad += not await _is_good(environment, own)
    print(f"{len(environments) - bad} passed, {bad} failed", flush=True)
    return 1 if bad else 0


async def _is_good(environment: Environment, own: dict[str, str]) -> bool:
    """Run its example, and print what it took; what it printed, if that isn't what the tool answers."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EVERGRANT_")}
    env = kept | _SILENT | own | {"PYTHONPATH": f"{ROOT}:{ROOT / 'clients/python/src'}"}
    began = time.monotonic()
    child = await asyncio.create_subprocess_exec(
        *(environment.python, "-m", "tests.frameworks.run", f"with_{environment.name}"),
        cwd=ROOT,
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said = (await asyncio.wait_for(child.communicate(), _WITHIN_S))[0].decode()
    ways = [line for line in said.splitlines() if line.startswith(("gateway: ", "auth(): "))]
    good = child.returncode == 0 and bool(ways) and all(EXPECTED in way for way in ways)
    took = time.monotonic() - began
    print(
        f"{'✓' if good else '✗'} {environment.name}: {' and '.join(way.partition(':')[0] for way in ways)} "
        f"in {took:.0f} s; {environment.megabytes:.0f} MB installed in {environment.seconds:.0f} s",
        flush=True,
    )
    if not good:
        print(said, file=sys.stderr)
    return good


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
