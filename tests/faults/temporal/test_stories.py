"""Stories are sealed in Temporal; without its key a run ends, and what it had to do is done by another."""

import base64
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import RawValue

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.messages.connection import AccountChosen, EnsureFresh, Revoke
from evergrant_server.core.messages.names import SignalName, connection_workflow_id
from evergrant_server.crypto import KeyPurpose
from evergrant_server.temporal_link import runs, stories
from evergrant_server.temporal_link.connect import prepare_namespace
from evergrant_server.temporal_link.stories import ENCODING, is_sealed
from tests.fakes.databases import lent
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.platform.installation import ASKED, NEVER_ROTATES, TENANT, Installation, installation
from tests.fakes.platform.observations import run_id
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.temporal import TemporalServer, payloads_in, running_temporal

SUBJECT, SCOPE, ACCOUNT = "alice.smith@example.com", "calendar.alice-private", "account-of-alice-42"
REASON = "alice smith has left"
PLAIN = (SUBJECT, SCOPE, ACCOUNT, REASON)


async def destroy_key(place: Installation, connection: Connection) -> None:
    """Of the story alone: what opens the tokens stays."""
    async with place.store.write() as tx:
        assert await tx.sealer.destroy_keys(TENANT, connection.id, (KeyPurpose.STORY,)) == 1


async def test_every_payload_of_a_whole_life_is_sealed_and_evergrant_reads_all_of_it(place: Installation):
    connection = await place.connect(NEVER_ROTATES)
    await place.ensure_fresh(connection, 1)
    await place.revoked(connection)
    await place.until_exported(connection)
    workflow = connection_workflow_id(TENANT, connection.id)
    sealed = await place.parts.link.sealed_history(workflow)
    written = payloads_in(sealed)
    assert len(written) > 15
    assert all(is_sealed(payload) for payload in written)
    opened = await place.parts.link.history(workflow)
    assert not any(is_sealed(payload) for payload in payloads_in(opened))
    assert await place.parts.link.newest_generation(workflow) == 2
    async with place.store.read() as tx:
        (export,) = await tx.histories.of_connection(TENANT, connection.id)
    assert export.events == sealed, "kept as Temporal has it: the key's destruction ends this copy too"
    assert await place.parts.link.open_events(export.events) == opened


class TestWithoutAKey:
    """On a server of its own, which reports a run's problems sooner."""

    @pytest.fixture
    async def temporal_address(self, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
        sooner = "system.numConsecutiveWorkflowTaskProblemsToTriggerSearchAttribute=2"
        async with running_temporal(tmp_path_factory.mktemp("temporal"), settings=[sooner]) as server:
            await prepare_namespace(await server.client(), timedelta(days=1))
            yield server.address

    async def test_a_run_is_replaced_by_one_that_revokes(
        self,
        temporal_address: str,
        database_url: str,
        tmp_path: Path,
        idp: ScriptedProvider,
        monkeypatch: pytest.MonkeyPatch,
    ):
        """Its worker is another, so that the run is read anew, and can't be."""
        monkeypatch.setattr(runs, "_MOST_TRIES_OF_A_TASK", 2)  # later ones take ten seconds each
        where = (temporal_address, database_url, tmp_path, idp)
        async with installation(*where) as place:
            connection = await place.connect(NEVER_ROTATES)
            queue = place.parts.settings.temporal_task_queue
            workflow = connection_workflow_id(TENANT, connection.id)
            lost = await run_id(place.parts.link, workflow)
        async with installation(*where, temporal_task_queue=queue) as place:
            await destroy_key(place, connection)
            await place.revoke(connection)

            async def after_a_pass() -> Connection:
                await place.parts.reconciler.reconcile_all(compare=False)
                return await place.row(connection)

            await eventually(after_a_pass, lambda row: row.state is LifecycleState.REVOKED)
            handle = place.parts.client.get_workflow_handle(workflow, run_id=lost)
            assert (await handle.describe()).status is WorkflowExecutionStatus.TERMINATED
            assert await place.parts.link.newest_generation(workflow, lost) is None
            assert [call.endpoint for call in place.idp.calls].count("revoke") > 0


async def test_a_run_in_memory_goes_on_with_a_new_key(place: Installation, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stories, "_HELD_S", 0.0)
    connection = await place.connect(NEVER_ROTATES)
    await place.until_described(connection, lambda told: told.generation == 1)
    workflow = connection_workflow_id(TENANT, connection.id)
    before = await run_id(place.parts.link, workflow)
    await destroy_key(place, connection)
    described = await place.described(connection)
    assert described is not None, "queries answer"
    assert described.generation == 1
    await place.ensure_fresh(connection, 1)
    await place.revoked(connection)
    assert await run_id(place.parts.link, workflow) == before


async def test_reconcile_restarts_a_run_without_its_key_and_says_that_the_store_may_be_behind(
    place: Installation, monkeypatch: pytest.MonkeyPatch
):
    """A live connection whose history has a key that the store lacks: it came from an older backup."""
    monkeypatch.setattr(stories, "_HELD_S", 0.0)
    connection = await place.connect(NEVER_ROTATES)
    workflow = connection_workflow_id(TENANT, connection.id)
    await place.parts.client.get_workflow_handle(workflow).terminate("its worker was lost")
    await destroy_key(place, connection)
    counts = await place.parts.reconciler.reconcile_all()
    assert counts.store_behind.first == (connection.id,)
    await place.until_described(connection, lambda told: told.generation == 1)
    assert (await place.parts.reconciler.reconcile_all()).store_behind.count == 0


@pytest.mark.parametrize("forged", ["of an unknown key", "of another connection"])
async def test_a_sealed_payload_that_isnt_the_connections_is_dropped(place: Installation, forged: str):
    """Who writes to the namespace may copy what another workflow wrote, or invent it."""
    connection, neighbour = await place.connect(NEVER_ROTATES), await place.connect(NEVER_ROTATES)
    workflow = connection_workflow_id(TENANT, connection.id)
    sealed = await place.parts.link.sealed_history(connection_workflow_id(TENANT, neighbour.id))
    (start,) = payloads_in(sealed[0]["workflowExecutionStartedEventAttributes"]["input"])
    copied = stories.ParseDict(start, Payload())
    data = copied.data.replace(b"cky_", b"ckz_") if forged == "of an unknown key" else copied.data
    metadata = {"encoding": ENCODING, "evergrant-workflow": workflow.encode()}
    stranger = await Client.connect(place.parts.settings.temporal_address)
    handle = stranger.get_workflow_handle(workflow)
    await handle.signal(SignalName.REVOKE, RawValue(Payload(metadata=metadata, data=data)))
    await place.until_signalled(connection, SignalName.REVOKE)
    assert (await place.ensure_fresh(connection, 1)).generation == 2
    assert (await place.row(connection)).state is LifecycleState.ACTIVE


async def test_a_run_that_began_plain_goes_on_sealed(
    temporal_address: str, database_url: str, tmp_path: Path, idp: ScriptedProvider
):
    where = (temporal_address, database_url, tmp_path, idp)
    async with installation(*where, seal_histories=False) as place:
        connection = await place.connect(NEVER_ROTATES)
        queue = {"temporal_task_queue": place.parts.settings.temporal_task_queue}
        events = await place.parts.link.sealed_history(connection_workflow_id(TENANT, connection.id))
        assert not any(is_sealed(payload) for payload in payloads_in(events))
    async with installation(*where, **queue) as place:
        await place.ensure_fresh(connection, 1)
        await place.revoked(connection)
        events = await place.parts.link.sealed_history(connection_workflow_id(TENANT, connection.id))
        assert any(is_sealed(payload) for payload in payloads_in(events))


# --- Temporal's own files --------------------------------------------------------------------


@pytest.mark.parametrize("seals", [True, False])
async def test_temporals_database_file_has_nothing_of_an_erased_subject(
    tmp_path: Path, idp: ScriptedProvider, seals: bool
):
    """With the setting off the same life leaves them there: so the search finds what is there."""
    folder = tmp_path / "temporal"
    folder.mkdir()
    async with running_temporal(folder) as server, lent("sqlite", tmp_path) as url:
        await prepare_namespace(await server.client(), timedelta(days=1))
        await _live_and_erase(server, url, tmp_path, idp, seals)
    files = [file.read_bytes() for file in sorted(folder.iterdir()) if file.name.startswith("temporal.db")]
    left = {text for text in PLAIN for content in files if text.encode() in content}
    assert left == (set() if seals else {SCOPE, ACCOUNT, REASON}), "the subject never gets there"


async def _live_and_erase(
    server: TemporalServer, database_url: str, folder: Path, idp: ScriptedProvider, seals: bool
) -> None:
    async with installation(server.address, database_url, folder, idp, seal_histories=seals) as place:
        begun = await place.begin(await place.integration(NEVER_ROTATES), subject=SUBJECT)
        connection = await place.granted(begun)
        narrower = EnsureFresh(seen_generation=1, scopes=(SCOPE,), context=ASKED)
        await place.parts.link.ensure_fresh(TENANT, connection.id, narrower, timeout=PATIENCE_S)
        handle = place.workflow(connection)
        await handle.signal(SignalName.ACCOUNT_CHOSEN, AccountChosen(choice=ACCOUNT, context=ASKED))
        await place.revoke(connection, tell=False)
        await handle.signal(SignalName.REVOKE, Revoke(reason=REASON, context=ASKED))
        await place.until(connection, lambda row: row.state is LifecycleState.REVOKED)
        await place.until_exported(connection)
        async with place.store.write() as tx:
            assert await tx.sealer.destroy_keys(TENANT, connection.id) == int(seals)
        async with place.store.read() as tx:
            (export,) = await tx.histories.of_connection(TENANT, connection.id)
        told = b"".join(base64.b64decode(payload["data"]) for payload in payloads_in(export.events))
        assert (REASON.encode() in told) is not seals
