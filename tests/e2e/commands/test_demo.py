"""The demo, as a newcomer runs it: every claim observed, on both databases."""

import asyncio
import os
import sys

import pytest

from examples.demo.claims import Claim
from examples.demo.processes import ROOT
from tests.fakes.databases import Postgres, postgres_server

__all__ = ["postgres_server"]  # the fixture


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.soak)])
async def test_every_claim_of_the_demo_is_observed(database: str, request: pytest.FixtureRequest, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EVERGRANT_")}
    environment["EVERGRANT_KEY_FILE"] = str(tmp_path / "keys.json")
    if database == "postgresql":
        server: Postgres = request.getfixturevalue("postgres_server")
        environment["EVERGRANT_DATABASE_URL"] = await server.fresh(migrated=False)
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "examples.demo",
        cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = await asyncio.wait_for(child.communicate(), 500)
    finally:
        if child.returncode is None:
            child.terminate()
            await child.wait()
    told = output.decode()
    assert child.returncode == 0, told
    assert told.count("✓") == len(Claim), told
    assert "Traceback" not in told
