"""Two workers that can't see each other spend one refresh token: the slow one's answer comes last.

The second worker has a journal folder of its own, as on another host.
"""

import asyncio
from pathlib import Path

import pytest
from temporalio.testing import ActivityEnvironment

from activities.critical import CriticalSections
from activities.holdings import Holder
from activities.refresh import RefreshActivities
from activities.single_use import SingleUse
from evergrant_server.core.connection import Connection, State
from evergrant_server.core.ids import workflow_id
from evergrant_server.core.messages import GrantNews, Provenance, RefreshGrant
from evergrant_server.core.provider import RefreshRules, Rotation
from evergrant_server.egress import Egress, EgressPolicy
from evergrant_server.journal.lock import JournalLock
from providers.flows import Sender
from tests.fakes.installation import ASKED, TENANT, Installation
from tests.fakes.scripted_provider import ScriptedProvider, delay, error, hold_answer
from tests.faults.test_one_connection import open_attempts

NEVER_ROTATES = RefreshRules(rotation=Rotation.NONE)


def a_worker(place: Installation, idp: ScriptedProvider, journals: Path) -> RefreshActivities:
    parts = place.parts
    sender = Sender(Egress(EgressPolicy(allow=(idp.allowance,))))
    single_use = SingleUse(parts.store, parts.clock, CriticalSections(), JournalLock(journals))
    holder = Holder(parts.store, parts.registry, parts.settings.public_url)
    return RefreshActivities(parts.store, holder, sender, single_use, parts.clock)


async def refresh(worker: RefreshActivities, connection: Connection, generation: int) -> GrantNews:
    order = RefreshGrant(
        tenant=TENANT,
        connection_id=connection.id,
        asked=ASKED,
        provenance=Provenance(workflow_id=workflow_id(TENANT, connection.id), run_id="r", event_id=1),
        generation=generation,
    )
    async with asyncio.timeout(20):
        return await ActivityEnvironment().run(worker.refresh_grant, order)


@pytest.mark.parametrize("refused", [False, True])
async def test_an_answer_that_comes_after_a_takeover_ends_quietly(
    place: Installation, lenient: ScriptedProvider, tmp_path: Path, refused: bool
):
    """It changes nothing: the newer grant stays, a late no doesn't condemn it, and nobody loops."""
    connection = await place.connect(lenient, NEVER_ROTATES)
    slow, quick = (a_worker(place, lenient, tmp_path / name) for name in ("slow", "quick"))
    gate = asyncio.Event()
    lenient.script(delay(gate, error("invalid_grant")) if refused else hold_answer(gate))
    late = asyncio.create_task(refresh(slow, connection, 1))
    await lenient.until("token", 2)
    assert (await refresh(quick, connection, 1)).generation == 2
    gate.set()
    await late
    row = await place.row(connection)
    assert (row.state, row.generation) == (State.ACTIVE, 2)
    assert await open_attempts(place, connection) == 0


async def test_an_answer_that_comes_after_the_takeover_was_refused_is_not_believed(
    place: Installation, lenient: ScriptedProvider, tmp_path: Path
):
    connection = await place.connect(lenient, NEVER_ROTATES)
    slow, quick = (a_worker(place, lenient, tmp_path / name) for name in ("slow", "quick"))
    gate = asyncio.Event()
    lenient.script(hold_answer(gate), error("invalid_grant"))
    late = asyncio.create_task(refresh(slow, connection, 1))
    await lenient.until("token", 2)
    await refresh(quick, connection, 1)
    gate.set()
    news = await late
    row = await place.row(connection)
    assert (row.state, news.failure) == (State.NEEDS_REAUTH, row.reason)
    assert await open_attempts(place, connection) == 0
