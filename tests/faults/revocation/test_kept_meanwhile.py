"""A token that is kept to be revoked, in the moment in which its connection's revocation ends.

On PostgreSQL: on SQLite one transaction writes at a time.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.single_use.attempt import TimeLimits
from evergrant_server.store.connections.replaced_grants import ReplacedGrants
from tests.fakes.databases import lent
from tests.fakes.platform.installation import TENANT, Installation
from tests.faults.revocation.test_replaced_grants import connected, kept
from tests.faults.single_use.test_overlapping_intents import waits
from tests.faults.support.activities import Activities
from tests.faults.support.reply_timing import SHORT, Slow


@pytest_asyncio.fixture
async def database_url(tmp_path: Path) -> AsyncIterator[str]:
    async with lent("postgresql", tmp_path) as url:
        yield url


@pytest.fixture
def limits() -> TimeLimits:
    return SHORT


async def test_a_token_that_is_kept_while_its_connection_is_revoked_is_revoked_too(
    place: Installation, monkeypatch: pytest.MonkeyPatch
):
    """The late answer to a code comes when the provider has confirmed, and the keys are about to go."""
    connection = await connected(place, await place.integration(), None)
    consent, slow = await place.consent(connection, tell=False), Slow(place, refresh_token=None)
    await slow.is_overtaken(place, connection, consent)
    async with place.store.write() as tx:
        current = await tx.connections.get(TENANT, connection.id)
        assert current is not None
        revoking = current.revocation_requested("left", place.parts.clock.now())
        await tx.connections.replace(revoking, expected=current.revision)
    keep, beside, revocations = ReplacedGrants.add, Activities(place, "beside"), list[asyncio.Task[Any]]()

    async def kept_beside(*of: Any) -> None:
        await keep(*of)
        revocations.append(asyncio.create_task(beside.revoke(connection)))
        await waits(place.store, revocations[0])

    monkeypatch.setattr(ReplacedGrants, "add", kept_beside)
    await slow.answered()
    monkeypatch.undo()
    assert (await revocations[0]).failure is ErrorCode.REFRESH_PENDING
    assert len(await kept(place, connection)) == 1
    assert (await beside.revoke(connection)).failure is None
    assert set(place.idp.families[-1].access_tokens) <= {
        call.params["token"] for call in place.idp.calls if call.endpoint == "revoke"
    }
