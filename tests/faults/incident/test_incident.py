"""A breach drill and what follows a leak of keys, carried out by a real worker on a real Temporal server."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from evergrant_server import audit
from evergrant_server.access.incidents import Scope, open_incident, pause_incident
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.incidents import Incident, IncidentKind, IncidentState
from evergrant_server.core.ids import ConnectionId
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.keys import KeyRow
from tests.fakes.databases import lent
from tests.fakes.patience import eventually
from tests.fakes.platform.installation import ASKED, NEVER_ROTATES, STRICT, Installation, installation
from tests.fakes.platform.observations import TENANT
from tests.fakes.providers.scripted_provider import ScriptedProvider, echo

DAY = timedelta(days=1)


async def opened(place: Installation, kind: IncidentKind, wait: timedelta = DAY, **scope: Any) -> Incident:
    names = {"integration": None, "app": None, "since": None, "until": None, **scope}
    order = Scope(TENANT, kind, **names)
    async with place.store.write() as tx:
        incident = await open_incident(tx, order, "INC-7", wait, ASKED, place.parts.clock.now())
    place.parts.relay.notify()
    return incident


async def row(place: Installation, incident: Incident) -> Incident:
    async with place.store.read() as tx:
        current = await tx.incidents.get(TENANT, incident.id)
    assert current is not None
    return current


async def until_done(place: Installation, incident: Incident) -> Incident:
    async def read() -> Incident:
        return await row(place, incident)

    return await eventually(read, lambda current: current.state is IncidentState.DONE)


async def report_of(place: Installation, incident: Incident) -> dict[str, dict[str, Any]]:
    """The lines of the connections, by their ids."""
    async with place.store.read() as tx:
        lines = await tx.incident_items.lines(incident, "", 1000)
    return {id: json.loads(line) for id, line in lines}


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_breach_is_stopped_revoked_and_reported_with_what_the_provider_answered(
    kind: str, temporal_address: str, tmp_path: Path
):
    async with (
        lent(kind, tmp_path) as url,
        ScriptedProvider() as idp,
        installation(temporal_address, url, tmp_path, idp) as place,
    ):
        breached, kept = await place.integration(), await place.connect()
        fleet = await place.fleet(breached, 4)
        idp.script(echo("server_error", 503), at="revoke")  # the first revocation is tried again
        incident = await opened(place, IncidentKind.BREACH, integration=breached.name)
        done = await until_done(place, incident)
        assert (done.selected, done.ended, done.outcomes) == (4, 4, {"confirmed": 4})
        lines = await report_of(place, done)
        assert lines.keys() == {connection.id for connection in fleet}
        for line in lines.values():
            assert (line["outcome"], line["state"]) == ("confirmed", "revoked")
            assert {answer["status"] for answer in line["evidence"]["answers"]} == {200}
            assert line["evidence"]["keys_destroyed"] > 0
        assert (await place.row(kept)).state is LifecycleState.ACTIVE
        assert (await audit.verify_log(place.store, TENANT)).problem is None
        async with place.store.read() as tx:
            ended = await audit.newest_record(tx, TENANT, incident.id, AuditAction.INCIDENT_ENDED)
        assert ended is not None
        assert ended.detail["digest"] == done.digest


async def test_a_paused_breach_keeps_its_connections_stopped_and_tells_none(
    temporal_address: str, tmp_path: Path
):
    async with (
        lent("sqlite", tmp_path) as url,
        ScriptedProvider() as idp,
        installation(temporal_address, url, tmp_path, idp) as place,
    ):
        breached = await place.integration()
        fleet = await place.fleet(breached, 3)
        async with place.store.write() as tx:
            scope = Scope(TENANT, IncidentKind.BREACH, breached.name, None, None, None)
            now = place.parts.clock.now()
            incident = await open_incident(tx, scope, "INC-7", DAY, ASKED, now)
            await pause_incident(tx, TENANT, incident.id, ASKED, now, paused=True)
        place.parts.relay.notify()
        await place.parts.reconciler.reconcile_all()
        assert [c.state for c in await rows(place, fleet)] == [LifecycleState.ACTIVE] * 3
        async with place.store.write() as tx:
            await pause_incident(tx, TENANT, incident.id, ASKED, place.parts.clock.now(), paused=False)
        place.parts.relay.notify()
        assert (await until_done(place, incident)).outcomes == {"confirmed": 3}


async def rows(place: Installation, fleet: list[Connection]) -> list[Connection]:
    return [await place.row(connection) for connection in fleet]


async def test_what_a_provider_never_confirms_is_unknown_in_the_report_and_stays_stopped(
    temporal_address: str, tmp_path: Path
):
    async with (
        lent("sqlite", tmp_path) as url,
        ScriptedProvider() as idp,
        installation(temporal_address, url, tmp_path, idp) as place,
    ):
        connection = await place.connect()
        for _ in range(50):
            idp.script(echo("server_error", 503), at="revoke")
        incident = await opened(place, IncidentKind.BREACH, wait=timedelta(seconds=3))
        done = await until_done(place, incident)
        assert done.outcomes == {"unknown": 1}
        line = (await report_of(place, done))[connection.id]
        assert (line["outcome"], line["state"]) == ("unknown", "revoking")
        assert line["evidence"]["action"] == "connection.revocation_failed"


async def test_after_a_leak_keys_are_new_tokens_are_refreshed_and_people_are_named(
    temporal_address: str, tmp_path: Path
):
    async with (
        lent("sqlite", tmp_path) as url,
        ScriptedProvider() as idp,
        installation(temporal_address, url, tmp_path, idp) as place,
    ):
        strict, lasting = await place.connect(STRICT), await place.connect(NEVER_ROTATES)
        before = {id: await key_ids(place, id) for id in (strict.id, lasting.id)}
        done = await until_done(place, await opened(place, IncidentKind.LEAK))
        assert done.outcomes == {"renewed": 1, "reconnect": 1}
        lines = await report_of(place, done)
        assert lines[strict.id]["outcome"] == "renewed"
        assert lines[lasting.id]["outcome"] == "reconnect"
        assert (await place.row(strict)).generation == strict.generation + 1
        for id, ids in before.items():
            assert not ids & await key_ids(place, id)


async def key_ids(place: Installation, id: ConnectionId) -> set[str]:
    """The ids of the connection's keys, those that seal what it has granted."""
    key = table_of(KeyRow).c
    async with place.store.read() as tx:
        query = select(key.id).where(key.tenant == TENANT, key.connection_id == id)
        return set((await tx.connection.execute(query)).scalars())
