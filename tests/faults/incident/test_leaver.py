"""Somebody leaves: held, put back or revoked, and reported, by a real worker on a real Temporal server."""

from datetime import timedelta
from pathlib import Path

from evergrant_server.access import leavers as orders
from evergrant_server.access.leavers import LeaverOrder
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.incidents import Incident, IncidentState
from evergrant_server.core.people.leavers import NamedPerson
from tests.fakes.databases import lent
from tests.fakes.patience import eventually
from tests.fakes.platform.installation import ASKED, Installation, installation
from tests.fakes.platform.observations import TENANT
from tests.fakes.providers.scripted_provider import ScriptedProvider, echo
from tests.faults.incident.test_incident import report_of, row, until_done

HOUR = timedelta(hours=1)


async def leaves(place: Installation, subject: str, grace: timedelta, **changes: str) -> Incident:
    order = LeaverOrder(
        tenant=TENANT,
        person=NamedPerson(subject=subject),
        reason="HR-7",
        grace=grace,
        wait=HOUR,
        sponsor=None,
        context=ASKED,
        at=place.parts.clock.now(),
        hand_over=changes,
    )
    async with place.store.write() as tx:
        incident = await orders.begin(tx, order)
    place.parts.relay.notify()
    return incident


async def test_held_connections_are_refreshed_and_put_back_and_afterwards_revoked(
    temporal_address: str, tmp_path: Path
):
    async with (
        lent("sqlite", tmp_path) as url,
        ScriptedProvider() as idp,
        installation(temporal_address, url, tmp_path, idp) as place,
    ):
        connection, other = await place.connect(), await place.connect()
        await move(place, other.id, "bob", "default")
        held = await leaves(place, connection.subject, HOUR)
        assert (await place.row(connection)).held_by == held.id
        await place.parts.reconciler.reconcile_all()
        assert (await row(place, held)).state is IncidentState.HOLDING
        async with place.store.write() as tx:
            await orders.undo(tx, TENANT, held.id, ASKED, place.parts.clock.now())
        place.parts.relay.notify()
        undone = await until_done(place, held)
        assert undone.outcomes == {"restored": 1}
        line = (await report_of(place, undone))[connection.id]
        assert (line["outcome"], line["evidence"]["action"]) == ("restored", "connection.restored")
        assert (await place.row(connection)).state is LifecycleState.ACTIVE
        idp.script(echo("server_error", 503), at="revoke")  # the first revocation is tried again
        gone = await until_done(place, await leaves(place, connection.subject, timedelta(0)))
        assert gone.outcomes == {"confirmed": 1}
        line = (await report_of(place, gone))[connection.id]
        assert (line["outcome"], line["state"], line["matched_by"]) == ("confirmed", "revoked", "order")
        assert {answer["status"] for answer in line["evidence"]["answers"]} == {200}
        assert (await place.row(other)).state is LifecycleState.ACTIVE


async def test_what_comes_within_the_grace_is_revoked_with_it_and_the_teams_is_handed_over(
    temporal_address: str, tmp_path: Path
):
    async with (
        lent("sqlite", tmp_path) as url,
        ScriptedProvider() as idp,
        installation(temporal_address, url, tmp_path, idp) as place,
    ):
        mine, teams = await place.connect(), await place.connect()
        await move(place, teams.id, mine.subject, "teams")
        incident = await leaves(place, mine.subject, timedelta(seconds=2), **{teams.id: "team"})
        late = await place.connect()
        await move(place, late.id, mine.subject, "late")
        done = await until_done(place, incident)
        assert done.outcomes == {"confirmed": 2, "handed_over": 1}
        lines = await report_of(place, done)
        assert {id: line["outcome"] for id, line in lines.items()} == {
            mine.id: "confirmed",
            late.id: "confirmed",
            teams.id: "handed_over",
        }
        assert ((await place.row(teams)).subject, (await place.row(teams)).state) == ("team", "active")


async def move(place: Installation, id: str, subject: str, label: str) -> None:
    """Have the connection be this subject's, under a label of its own."""

    async def written() -> bool:
        async with place.store.write() as tx:
            connection = await tx.connections.get(TENANT, id)  # type: ignore[arg-type]  # an id is text
            assert connection is not None
            moved = connection.__replace__(subject=subject, label=label)
            await tx.connections.replace_names(moved, expected=connection.revision)
        return True

    await eventually(written, bool)
