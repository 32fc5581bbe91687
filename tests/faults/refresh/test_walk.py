"""The walk of one due lease, from the API's route to the provider's bytes and back, as it was traced.

docs/architecture.md shows what this test measures. `WRITE_WALK=1` in the environment writes it there.
"""

import asyncio
import os
import re
from collections import Counter
from pathlib import Path

from tests.fakes.databases import lent
from tests.fakes.platform.installation import installation
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.walk import ROOT, Tracer

PAGE = ROOT / "docs" / "architecture.md"
BLOCK = re.compile(r"(?<=<!-- the walk, traced -->\n).*?(?=<!-- end of the walk -->)", re.DOTALL)
MOST_FRAMES = 19
MOST_FILES = 100  # roots and what a role signs with (ADR 0100), the codec (0103), bodies and trees (0106)
LIFETIME_S = 2
ROUTE = "by_names"
TO_WORKFLOW, TO_WORKER = "TemporalLink.ensure_fresh", "call"


async def traced(temporal_address: str, folder: Path) -> Tracer:
    """A lease of a token that has expired, on SQLite."""
    with Tracer() as tracer:
        async with (
            lent("sqlite", folder) as url,
            ScriptedProvider(expires_in=LIFETIME_S) as idp,
            installation(temporal_address, url, folder, idp) as place,
        ):
            connection = await place.connect()
            async with place.api() as api:
                names = {"integration": connection.integration, "subject": connection.subject}
                warm = (await api.post("/v1/lease", json=names)).json()
                await asyncio.sleep(LIFETIME_S + 0.1)
                refreshes = idp.refreshes
                tracer.begin()
                lease = (await api.post("/v1/lease", json=names)).json()
                tracer.end()
                assert lease["generation"] == warm["generation"] + 1
                assert idp.refreshes == refreshes + 1
    return tracer


def shown(tracer: Tracer) -> tuple[list[str], list[str], str]:
    """The frames from the route to the first byte, the files outside core, and both as the page has them."""
    to_workflow = [str(step) for step in tracer.chain_to(TO_WORKFLOW)]
    route = next(number for number, step in enumerate(to_workflow) if step.endswith(ROUTE))
    to_worker = [str(step) for step in tracer.chain_to(TO_WORKER)]
    to_provider = [str(step) for step in tracer.first_byte]
    frames = [*to_workflow[route:], *to_worker, *to_provider]
    files = sorted({step.file for step in tracer.walked() if "/core/" not in step.file})
    owners = Counter(re.match(r"evergrant_server/[^/]+|[^/]+", file).group() for file in files)  # type: ignore[union-attr]  # always
    handovers = {len(to_workflow) - route: "the workflow", len(frames) - len(to_provider): "a worker"}
    lines = [f"{len(frames)} frames from the route to the provider's bytes:", "", "```"]
    for number, frame in enumerate(frames):
        lines += [f"   --- {handovers[number]}"] if number in handovers else []
        lines.append(f"{number + 1:2} {frame}")
    lines += [
        "```",
        "",
        f"{len(files)} files outside `core`, there and back:",
        "",
        "| package | files |",
        "| --- | ---: |",
    ]
    lines += [f"| `{owner}` | {count} |" for owner, count in sorted(owners.items())]
    return frames, files, "\n".join(lines) + "\n"


async def test_the_page_shows_the_walk_that_was_traced(temporal_address: str, tmp_path: Path):
    frames, files, text = shown(await traced(temporal_address, tmp_path))
    print("\n".join(files))
    if os.environ.get("WRITE_WALK"):
        page = BLOCK.sub(lambda _: text, PAGE.read_text(encoding="utf-8"))
        await asyncio.to_thread(PAGE.write_text, page, encoding="utf-8")
    found = BLOCK.search(await asyncio.to_thread(PAGE.read_text, encoding="utf-8"))
    assert found is not None, "the page has no place for the walk"
    assert found.group() == text, "WRITE_WALK=1 writes what was traced to docs/architecture.md"
    assert len(frames) <= MOST_FRAMES
    assert len(files) <= MOST_FILES
