"""`make conformance`: Evergrant as an MCP client, judged by the protocol's own conformance suite; then a
server by itself and behind the gateway; then Evergrant's own MCP server."""

import asyncio
import os
import sys
import tempfile
from pathlib import Path

from tests.conformance.mcp.comparison import compared
from tests.conformance.mcp.driver import driver
from tests.conformance.mcp.issuer import judged_issuer
from tests.conformance.mcp.own_server import own_server_judged
from tests.conformance.mcp.verdicts import (
    CLIENT_METADATA_URL,
    judge,
    judge_ports,
    required_scenarios,
    verdicts_in,
    versions,
)
from tests.e2e.world import World, running

_REVISIONS = ("2026-07-28", "2025-11-25")
_EXTENSION = "auth/enterprise-managed-authorization"
_PORTS = 120  # of a run, whose scenarios are all under way at the same time


async def main() -> int:
    os.environ["EVERGRANT_CLIENT_METADATA_URL"] = CLIENT_METADATA_URL
    ports = [judge_ports(_PORTS) for _ in _REVISIONS]
    allowed = [f"localhost:{port}" for some in ports for port in some]
    print(f"{versions()}, client mode; a platform as dev starts it is the client", flush=True)
    bad = 0
    with tempfile.TemporaryDirectory(prefix="evergrant-conformance-") as data:
        async with running(World, Path(data), *allowed) as world, driver(world) as port:
            for revision, mine in zip(_REVISIONS, ports, strict=True):
                bad += await _judged(revision, port, mine)
            bad += await _judged_extension(port, ports[0])
    for revision in _REVISIONS:
        bad += not await compared(revision)
        bad += not await own_server_judged(revision)
    bad += not await judged_issuer()
    return 1 if bad else 0


async def _judged(revision: str, port: str, ports: list[int]) -> int:
    """Print the verdicts of one revision; returns how many required scenarios failed."""
    required = required_scenarios(revision)
    said = await judge(port, ports, "--requirements", revision)
    verdicts = verdicts_in(said)
    good = [name for name in required if name in verdicts and verdicts[name].is_good]
    print(f"\n{revision}: {len(good)} of {len(required)} required auth scenarios pass")
    for name in required:
        print(f"  {verdicts.get(name, f'✗ {name}: no verdict')}")
    if len(good) < len(required):
        print(said, file=sys.stderr)
    return len(required) - len(good)


async def _judged_extension(port: str, ports: list[int]) -> int:
    """Of the extension `enterprise-managed-authorization`, which no revision requires."""
    where = ("--scenario", _EXTENSION, "--spec-version", _REVISIONS[0], "--force")
    said = await judge(port, ports, *where)
    good = "OVERALL: PASSED" in said
    print(f"\n  {'✓' if good else '✗'} {_EXTENSION}")
    if not good:
        print(said, file=sys.stderr)
    return not good


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
