"""Bulk orders, carried out by a real worker on a real Temporal server; and one whose worker is killed."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.bulk import BulkAction, BulkFilter, BulkOrder
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.incidents import IncidentState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import BulkId, IncidentId, new_id
from evergrant_server.core.outbox import bulk_message
from tests.fakes.databases import lent
from tests.fakes.patience import eventually
from tests.fakes.platform.installation import ASKED, NEVER_ROTATES, STRICT, Installation, installation
from tests.fakes.platform.observations import TENANT
from tests.fakes.providers.scripted_provider import ScriptedProvider, echo
from tests.faults.incident.drill import Drill, running_drill

DAY = timedelta(days=1)


async def ordered(
    place: Installation,
    action: BulkAction,
    *,
    wait: timedelta = DAY,
    label: str | None = None,
    paused: bool = False,
    **filters: Any,
) -> BulkOrder:
    now = place.parts.clock.now()
    order = BulkOrder(
        tenant=TENANT,
        id=BulkId(new_id("blk")),
        action=action,
        filters=BulkFilter(**filters),
        label=label,
        reason="INC-7",
        by="app:boss",
        created_at=now,
        waits_until=now + wait,
        paused=paused,
    )
    async with place.store.write() as tx:
        await tx.bulk_orders.add(order)
        await tx.outbox.add(bulk_message(order, ASKED, now))
    place.parts.relay.notify()
    return order


async def row(place: Installation, order: BulkOrder) -> BulkOrder:
    async with place.store.read() as tx:
        current = await tx.bulk_orders.get(TENANT, order.id)
    assert current is not None
    return current


async def until_done(place: Installation, order: BulkOrder) -> BulkOrder:
    async def read() -> BulkOrder:
        return await row(place, order)

    return await eventually(read, lambda current: current.state is IncidentState.DONE)


async def outcomes(place: Installation, order: BulkOrder) -> dict[str, str | None]:
    async with place.store.read() as tx:
        page = await tx.incident_items.page(order, None, 100)  # type: ignore[arg-type]  # of either kind
    return {listed.item.connection_id: listed.item.outcome for listed in page}


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_connections_are_refreshed_each_once_and_what_could_not_be_is_said(
    kind: str, temporal_address: str, tmp_path: Path
):
    async with (
        lent(kind, tmp_path) as url,
        ScriptedProvider() as idp,
        installation(temporal_address, url, tmp_path, idp) as place,
    ):
        crm = await place.integration(STRICT)
        fleet = await place.fleet(crm, 4)
        pending = await place.begin(crm, subject="waits")
        elsewhere = await place.connect(NEVER_ROTATES)
        idp.script(echo("invalid_grant", 400))  # of one of them the provider says that it is over
        order = await ordered(place, BulkAction.REFRESH, integration=crm.name)
        done = await until_done(place, order)
        assert (done.selected, done.ended) == (5, 5)
        assert done.outcomes == {"renewed": 3, "reconnect": 1, "nothing_held": 1}
        assert (await outcomes(place, done))[pending.id] == "nothing_held"
        generations = sorted([(await place.row(connection)).generation for connection in fleet])
        assert generations == [1, 2, 2, 2]
        assert (await place.row(elsewhere)).generation == 1
        refreshed = [await place.audited(it, AuditAction.GRANT_REFRESHED) for it in fleet]
        assert sorted(map(len, refreshed)) == [0, 1, 1, 1]


async def test_a_refresh_that_the_provider_does_not_answer_has_failed_and_is_tried_again_by_itself(
    temporal_address: str, tmp_path: Path
):
    async with (
        lent("sqlite", tmp_path) as url,
        ScriptedProvider() as idp,
        installation(temporal_address, url, tmp_path, idp) as place,
    ):
        connection = await place.connect()
        for _ in range(3):
            idp.script(echo("server_error", 503))
        order = await ordered(place, BulkAction.REFRESH, connections=(connection.id,))
        assert (await until_done(place, order)).outcomes == {"failed": 1}
        assert (await place.row(connection)).state is LifecycleState.ACTIVE


async def test_a_paused_revocation_touches_nobody_and_goes_on_in_their_turn(
    temporal_address: str, tmp_path: Path
):
    async with (
        lent("sqlite", tmp_path) as url,
        ScriptedProvider() as idp,
        installation(temporal_address, url, tmp_path, idp) as place,
    ):
        crm = await place.integration()
        fleet = await place.fleet(crm, 3)
        order = await ordered(place, BulkAction.REVOKE, paused=True, integration=crm.name)
        await place.parts.reconciler.reconcile_all()
        assert [(await place.row(it)).state for it in fleet] == [LifecycleState.ACTIVE] * 3
        async with place.store.write() as tx:
            current = await tx.bulk_orders.get(TENANT, order.id)
            assert current is not None
            await tx.bulk_orders.replace(current.__replace__(paused=False), expected=current.revision)
            await tx.outbox.add(bulk_message(current, ASKED, place.parts.clock.now()))
        place.parts.relay.notify()
        assert (await until_done(place, order)).outcomes == {"confirmed": 3}
        revoked = await place.row(fleet[0])
        assert (revoked.state, revoked.revoke_reason) == (LifecycleState.REVOKED, f"bulk order: {order.id}")


async def test_labels_are_given_unless_taken_and_apps_hear_again_who_has_to_consent(
    temporal_address: str, tmp_path: Path
):
    async with (
        lent("sqlite", tmp_path) as url,
        ScriptedProvider() as idp,
        installation(temporal_address, url, tmp_path, idp) as place,
    ):
        crm = await place.integration()
        ann, bob = await place.fleet(crm, 2)
        await place.begin(crm, subject=ann.subject, label="work")
        order = await ordered(
            place, BulkAction.LABEL, label="work", connections=(ann.id, bob.id), integration=None
        )
        assert (await until_done(place, order)).outcomes == {"taken": 1, "labelled": 1}
        assert [(await place.row(it)).label for it in (ann, bob)] == ["default", "work"]
        now = place.parts.clock.now()
        async with place.store.write() as tx:
            current = await tx.connections.get(TENANT, bob.id)
            assert current is not None
            gone = current.rejected(ErrorCode.GRANT_REJECTED, now)
            await tx.connections.replace(gone, expected=current.revision)
        order = await ordered(place, BulkAction.RECONNECT, connections=(ann.id, bob.id))
        assert (await until_done(place, order)).outcomes == {"asked": 1, "well": 1}
        asked = await place.audited(bob, AuditAction.RECONNECT_REQUESTED)
        assert [record.context.by for record in asked] == ["app:boss"]


async def test_of_a_leaver_nothing_is_asked_or_renamed_and_a_revocation_is_carried_out(
    temporal_address: str, tmp_path: Path
):
    """Within the grace a connection may be put back: it is kept fresh, and stays who it is."""
    async with (
        lent("sqlite", tmp_path) as url,
        ScriptedProvider() as idp,
        installation(temporal_address, url, tmp_path, idp) as place,
    ):
        ann, bob = await place.fleet(await place.integration(STRICT), 2)
        now, leaves = place.parts.clock.now(), IncidentId(new_id("inc"))
        async with place.store.write() as tx:
            for connection in (ann, bob):
                current = await tx.connections.get(TENANT, connection.id)
                assert current is not None
                if connection is bob:
                    current = current.rejected(ErrorCode.GRANT_REJECTED, now)
                held = current.__replace__(held_by=leaves)
                await tx.connections.replace(held, expected=held.revision)
        both = (ann.id, bob.id)
        for action, ended in (
            (BulkAction.LABEL, {"held": 2}),
            (BulkAction.RECONNECT, {"held": 2}),
            (BulkAction.REFRESH, {"renewed": 1, "reconnect": 1}),
            (BulkAction.REVOKE, {"confirmed": 2}),
        ):
            label = "work" if action is BulkAction.LABEL else None
            order = await ordered(place, action, label=label, connections=both)
            assert (await until_done(place, order)).outcomes == ended, action
        rows = [await place.row(connection) for connection in (ann, bob)]
        assert [(row.label, row.state, row.held_by) for row in rows] == [
            ("default", LifecycleState.REVOKED, leaves)
        ] * 2
        assert await place.audited(bob, AuditAction.RECONNECT_REQUESTED) == []


async def test_a_search_is_forgotten_with_the_end_of_its_order(temporal_address: str, tmp_path: Path):
    async with (
        lent("sqlite", tmp_path) as url,
        ScriptedProvider() as idp,
        installation(temporal_address, url, tmp_path, idp) as place,
    ):
        await place.fleet(await place.integration(), 2)
        order = await ordered(place, BulkAction.REFRESH, subject="user-1")
        done = await until_done(place, order)
        assert (done.selected, done.filters.subject) == (1, None)


@pytest.mark.soak
async def test_an_order_whose_worker_is_killed_halfway_refreshes_the_rest(tmp_path: Path):
    """But for refreshes whose answer died with the worker: these are sent again minutes later, by their own
    schedule, and the order waits for them."""
    number = 40
    async with (
        lent("sqlite", tmp_path) as url,
        running_drill(tmp_path, url, number) as drill,
    ):
        body = {"action": "refresh", "integration": "crm", "reason": "a test"}
        order = (await drill.send("POST", "/v1/connections/bulk", json=body)).json()
        done = await _killed_halfway(drill, f"/v1/connections/bulk/{order['id']}")
        assert done["selected"] == number
        assert set(done["outcomes"]) <= {"renewed", "failed"}
        assert done["outcomes"]["renewed"] > number // 4, "the next worker went on"
        assert len(await drill.leasable()) == number
        live, _ = await drill.server.refresh_tokens()
        assert live == number


async def _killed_halfway(drill: Drill, place: str) -> dict[str, Any]:
    """The order once each of its connections has ended, or waits for its lost answer."""
    killed = False
    for _ in range(1200):
        order = (await drill.send("GET", place)).json()
        if not killed and order["ended"] * 4 >= order["selected"] > 0:
            killed = True
            await drill.members[-1].kill()
        if order["finished_at"] is not None or (killed and await _waits_for_answers(drill, place)):
            assert killed, "it was done before a worker could be killed"
            return order
        await asyncio.sleep(0.1)
    raise TimeoutError(f"it doesn't end: {order}")


async def _waits_for_answers(drill: Drill, place: str) -> bool:
    items = (await drill.send("GET", f"{place}/connections?limit=100")).json()["items"]
    for item in items:
        if item["outcome"] is None:
            connection = (
                await drill.send("GET", f"/v1/connections/{item['connection_id']}?live=true")
            ).json()
            if "the answer to the one before was lost" not in (connection["next_action"] or ""):
                return False
    return True
