"""What comes between the steps of an erasure: a legal hold, and a worker that was suspended."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import activities.erasure
from evergrant_server.core.connections.erasure import ErasureState
from evergrant_server.core.messages.erasure import ErasureProgress
from evergrant_server.store.erasure.rows import PersonalRows
from tests.security.erasure.life import Life, life


@pytest_asyncio.fixture
async def alice(tmp_path: Path) -> AsyncIterator[Life]:
    async with life("sqlite", tmp_path) as alice:
        yield alice


@pytest.mark.parametrize("look_up", [PersonalRows.objects_of_connection, PersonalRows.objects_of_subject])
async def test_a_hold_that_comes_before_records_are_erased_keeps_them(
    alice: Life, monkeypatch: pytest.MonkeyPatch, look_up: Callable[..., Awaitable[list[str]]]
):
    connection = await alice.live()
    erasure = await alice.order(subject=alice.subject)
    await alice.to_the_end(erasure["id"])
    await alice.revoked(connection.id)
    erased_before = -1

    async def held_meanwhile(*of: Any) -> list[str]:
        nonlocal erased_before
        shown = (await alice.api.get(f"/v1/erasures/{erasure['id']}", alice.admin)).json()
        erased_before = shown["records"]
        hold = {"subject": alice.subject, "reason": "CASE-7"}
        assert (await alice.api.post("/v1/legal-holds", alice.admin, hold)).status_code == 201
        return [*await look_up(*of), "dlg_of_last_year"]

    monkeypatch.setattr(PersonalRows, look_up.__name__, held_meanwhile)
    progress = await alice.to_the_end(erasure["id"])
    assert (progress.state, progress.records) == (ErasureState.REFUSED, erased_before)


@pytest.mark.parametrize("overtaken_by", [ErasureState.ERASING, ErasureState.DONE])
async def test_a_try_that_was_suspended_leaves_the_place_of_a_later_one_alone(
    alice: Life, monkeypatch: pytest.MonkeyPatch, overtaken_by: ErasureState
):
    connection = await alice.live()
    erasure = await alice.order(subject=alice.subject)
    await alice.to_the_end(erasure["id"])
    await alice.revoked(connection.id)
    monkeypatch.setattr(activities.erasure, "_STEP_S", 0.0)  # a page of an activity
    newest_run, later = alice.runs.newest_run, list[ErasureProgress]()

    async def suspended(workflow: str) -> Any:
        monkeypatch.setattr(alice.runs, "newest_run", newest_run)
        while not later or later[-1].state is not overtaken_by:
            later.append(await alice.step(erasure["id"]))
        return await newest_run(workflow)

    monkeypatch.setattr(alice.runs, "newest_run", suspended)
    await alice.step(erasure["id"])
    progress = await alice.to_the_end(erasure["id"])
    assert (progress.state, progress.connections) == (ErasureState.DONE, 1)
    if overtaken_by is ErasureState.DONE:
        assert progress == later[-1]
