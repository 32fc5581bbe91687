"""A campaign: asked in waves, reminded, consented or stopped, by a real worker on a real Temporal server."""

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from evergrant_server.api.campaigns import orders
from evergrant_server.api.campaigns.orders import CampaignOrder
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.campaigns import CampaignEnd
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.incidents import Incident, IncidentState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Integration
from evergrant_server.store.connections.tables import ConnectionRow
from tests.fakes.databases import lent
from tests.fakes.patience import eventually
from tests.fakes.platform.installation import ASKED, Installation, installation
from tests.fakes.platform.observations import TENANT
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.faults.incident.test_incident import report_of, row, until_done

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


async def begun(place: Installation, older: Integration, newer: Integration, **changes: object) -> Incident:
    order = CampaignOrder(
        tenant=TENANT,
        integration=older.name,
        successor=newer.name,
        reason="OPS-9",
        wave_size=2,
        every=SECOND,
        first_wave=timedelta(0),
        remind=(),
        lasts=HOUR,
        end=CampaignEnd.KEEP,
        context=ASKED,
        at=place.parts.clock.now(),
    )
    values = {**vars(order), **changes}
    async with place.store.write() as tx:
        incident = await orders.begin(tx, place.parts.registry, CampaignOrder(**values))
    place.parts.relay.notify()
    return incident


async def asks(place: Installation, connection: Connection) -> list[dict[str, object]]:
    records = await place.audited(connection, AuditAction.RECONNECT_REQUESTED)
    return [dict(record.detail) for record in records]


async def ended(place: Installation, incident: Incident, rest: CampaignEnd | None = None) -> Incident:
    async with place.store.write() as tx:
        await orders.end(tx, TENANT, incident.id, rest, ASKED, place.parts.clock.now())
    place.parts.relay.notify()
    return await until_done(place, incident)


async def test_each_is_asked_once_consents_to_the_new_client_or_is_stopped(
    temporal_address: str, tmp_path: Path
):
    async with (
        lent("sqlite", tmp_path) as url,
        ScriptedProvider() as idp,
        installation(temporal_address, url, tmp_path, idp) as place,
    ):
        older, newer = await place.integration(), await place.integration()
        ann, bob, cam = await place.fleet(older, 3)
        incident = await begun(place, older, newer, remind=(SECOND,))

        async def all_reminded() -> bool:
            async with place.store.read() as tx:
                campaign = await tx.campaigns.get(TENANT, incident.id)
            return campaign is not None and (campaign.asked, campaign.reminded) == (3, 3)

        await eventually(all_reminded)
        for connection in (ann, bob, cam):
            details = await asks(place, connection)
            assert [detail.get("reminder") for detail in details] == [None, 1]
            assert {detail["reason"] for detail in details} == {"reconsent_required"}
        assert (await place.row(ann)).state is LifecycleState.ACTIVE, "it goes on meanwhile"
        await place.consent(ann, integration_id=newer.id)
        moved = await place.until(ann, lambda row: row.integration_id == newer.id)
        assert (moved.state, moved.generation, moved.integration) == ("active", 2, older.name)
        assert (await place.ensure_fresh(ann, 2)).problem is None, "by the client that has got it"
        done = await ended(place, incident, CampaignEnd.STOP)
        assert done.outcomes == {"consented": 1, "stopped": 2}
        line = (await report_of(place, done))[ann.id]
        assert (line["outcome"], line["reminders"]) == ("consented", 1)
        assert line["evidence"]["action"] == "grant.installed"
        stopped = await place.row(bob)
        assert (stopped.state, stopped.reason) == ("needs_reauth", ErrorCode.RECONSENT_REQUIRED)
        told = await place.until_described(bob, lambda described: described.state == "needs_reauth")
        assert told.reason is ErrorCode.RECONSENT_REQUIRED
        await place.consent(bob, integration_id=newer.id)
        back = await place.until(bob, lambda row: row.state is LifecycleState.ACTIVE)
        assert back.integration_id == newer.id
        revoked = await place.revoked(ann)
        assert revoked.revocation == "confirmed", "what each client has got"
        assert await place.audited(ann, AuditAction.REPLACED_GRANT_REVOKED)


async def test_it_is_undone_before_its_first_wave_and_nobody_was_asked(temporal_address: str, tmp_path: Path):
    async with (
        lent("sqlite", tmp_path) as url,
        ScriptedProvider() as idp,
        installation(temporal_address, url, tmp_path, idp) as place,
    ):
        older, newer = await place.integration(), await place.integration()
        (connection,) = await place.fleet(older, 1)
        incident = await begun(place, older, newer, first_wave=HOUR / 2)
        assert (await place.integration_now(newer.id)).name == older.name
        assert (await place.integration_now(older.id)).name == f"{older.name}-before"

        async def holds() -> bool:
            return (await row(place, incident)).state is IncidentState.HOLDING

        await eventually(holds)
        async with place.store.write() as tx:
            await orders.undo(tx, TENANT, incident.id, ASKED, place.parts.clock.now())
        place.parts.relay.notify()
        undone = await until_done(place, incident)
        assert undone.outcomes == {"kept": 1}
        names = [(await place.integration_now(each.id)).name for each in (older, newer)]
        assert names == [older.name, newer.name]
        assert await asks(place, connection) == []
        with pytest.raises(Failure, match="No such campaign goes on"):
            await ended(place, incident)


async def test_a_consent_to_a_client_that_was_taken_back_is_refused_and_the_grant_stays(
    temporal_address: str, tmp_path: Path
):
    async with (
        lent("sqlite", tmp_path) as url,
        ScriptedProvider() as idp,
        installation(temporal_address, url, tmp_path, idp) as place,
    ):
        older, newer = await place.integration(), await place.integration()
        (connection,) = await place.fleet(older, 1)
        consent = await place.consent(connection, integration_id=newer.id)
        await place.until_audited(connection, AuditAction.CONSENT_FAILED)
        assert (await place.consent_of(consent)).failure == ErrorCode.CALLBACK_INVALID
        kept = await place.row(connection)
        assert (kept.state, kept.generation, kept.integration_id) == ("active", 1, older.id)


async def test_a_row_that_says_another_client_than_has_got_its_grant_is_refused(
    temporal_address: str, tmp_path: Path
):
    async with (
        lent("sqlite", tmp_path) as url,
        ScriptedProvider() as idp,
        installation(temporal_address, url, tmp_path, idp) as place,
    ):
        older, newer = await place.integration(), await place.integration()
        (connection,) = await place.fleet(older, 1)
        other = await place.granted(await place.begin(newer, subject="else"))  # it has pinned hosts as well
        assert other.integration_id == newer.id
        async with place.store.write() as tx:
            mine = update(ConnectionRow).where(ConnectionRow.id == connection.id)  # type: ignore[arg-type]  # a column
            await tx.connection.execute(mine.values(integration_id=newer.id))
        answer = await place.ensure_fresh(connection, 1)
        assert answer.problem is ErrorCode.AUTHORITY_BROKEN
