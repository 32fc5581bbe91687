"""Apps that lease without a pause, and connections that nobody uses: what others get."""

import asyncio
import resource
from pathlib import Path
from typing import Any

import httpx2
import pytest

from bench.processes import python_module, running_process
from evergrant_server.audit.lease_queue import APP_SHARE
from evergrant_server.core.access import Action
from tests.fakes.api import Api
from tests.fakes.patience import PATIENCE_S
from tests.fakes.ports import free_port

OPEN = 500
IDLE = 1_500
LEASES = 20


async def test_attack_16_one_app_with_500_requests_open_takes_a_few_places_of_a_batch(
    api: Api, monkeypatch: pytest.MonkeyPatch
):
    """`make bench` has the times: what a neighbour waits for is decided by these counts."""
    _, greedy = await api.active_for("greedy", Action.TOKEN)
    other = await api.app_with("other", Action.TOKEN)
    ledger, batches = api.parts.ledger, list[list[str]]()
    write = ledger._write

    async def noting(batch: Any, *uses: Any) -> Any:
        batches.append([waiting.record.facts.claim.context.by for waiting in batch])
        return await write(batch, *uses)

    monkeypatch.setattr(ledger, "_write", noting)
    stop = asyncio.Event()

    async def flood() -> None:
        while not stop.is_set():
            assert (await api.lease(greedy)).status_code in (200, 503)  # 503: the machine is busy elsewhere

    crowd = [asyncio.create_task(flood()) for _ in range(OPEN)]
    while len(batches) < 2:
        await asyncio.sleep(0)
    assert (await api.lease(other)).status_code == 200
    shared_from, waited = len(batches), []
    for _ in range(LEASES):
        before = len(batches)
        assert (await api.lease(other)).status_code == 200
        waited.append(len(batches) - before)
    shared = batches[shared_from:]
    stop.set()
    await asyncio.gather(*crowd)
    assert sum(it.count("app:other") for it in shared) == LEASES
    assert max(it.count("app:greedy") for it in shared) == APP_SHARE
    print(f"\n{OPEN} requests open; batches that the other app's leases waited for: {sorted(waited)}")


async def test_a_client_with_1500_idle_connections_keeps_no_other_away(tmp_path: Path):
    """The server is the API's, with a bare route behind it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4 * IDLE:
        pytest.skip(f"this user may have {hard} files open, which is too few")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * IDLE), hard))
    port = free_port()
    async with running_process(python_module("bench.bare", tmp_path, str(port), "300"), port=port):
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(IDLE)]
        try:
            async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client:
                assert (await client.get("/livez", timeout=PATIENCE_S)).status_code == 200
        finally:
            for _, writer in idle:
                writer.close()
