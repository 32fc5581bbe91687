"""Invariant 7: revoked means revoked, in every process, from the commit on."""

import asyncio

from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import LifecycleState
from tests.fakes.api import Api


async def test_no_lease_after_a_revocation_in_another_process(api: Api):
    """Rows and callers are cached here; the revocation is committed by a second store."""
    connection, key = await api.active_for("pipeline", Action.TOKEN)
    for _ in range(20):
        assert (await api.lease(key)).status_code == 200
        assert (await api.post(f"/v1/connections/{connection.id}/token", key)).status_code == 200
    assert api.app.state.judged_pairs.leased == 38, "all but the first of each pair"
    await api.change(connection, lambda it: it.revocation_requested("stolen laptop", api.clock.now()))
    for _ in range(20):
        by_names = await api.lease(key)
        by_id = await api.post(f"/v1/connections/{connection.id}/token", key)
        for answer in (by_names, by_id):
            assert (answer.status_code, answer.json()["code"]) == (409, "connection_revoked")
            assert "at-1" not in answer.text


async def test_leases_in_flight_around_a_revocation(api: Api):
    """Many at once: those that were committed before it leave, none that began after it."""
    connection, key = await api.active_for("pipeline", Action.TOKEN)
    assert [(await api.lease(key)).status_code for _ in range(2)] == [200, 200]
    assert api.app.state.judged_pairs.leased == 1
    before = [asyncio.create_task(api.lease(key)) for _ in range(20)]
    await api.change(connection, lambda it: it.revocation_requested("left", api.clock.now()))
    after = await asyncio.gather(*(api.lease(key) for _ in range(20)))
    assert {answer.status_code for answer in after} == {409}
    assert {answer.status_code for answer in await asyncio.gather(*before)} <= {200, 409}


async def test_revoking_through_the_api_works_without_temporal(api: Api):
    connection, key = await api.active_for("pipeline", Action.TOKEN, Action.CONNECT)
    api.link.up = False
    answer = await api.post(f"/v1/connections/{connection.id}/revoke", key, {"reason": "left"})
    assert (answer.status_code, answer.json()["state"]) == (202, "revoking")
    assert (await api.lease(key)).json()["code"] == "connection_revoked"
    (message,) = await api.outbox()
    assert (message.name, message.payload["reason"]) == ("revoke", "left")
    assert message.target == f"connection:acme:{connection.id}"


async def test_a_token_that_lands_while_revoking_is_not_leased(api: Api):
    connection, key = await api.active_for("pipeline", Action.TOKEN)
    await api.change(connection, lambda it: it.revocation_requested("left", api.clock.now()))
    landed = await api.install(connection, "at-2")
    assert landed.state is LifecycleState.REVOKING
    answer = await api.lease(key)
    assert answer.json()["code"] == "connection_revoked"
    assert "at-2" not in answer.text


async def test_an_app_without_its_permit_is_refused_at_once(api: Api):
    """One that was disabled too: tests/security/test_keys.py."""
    _, key = await api.active_for("pipeline", Action.TOKEN)
    assert (await api.lease(key)).status_code == 200
    app = await api.app_named("pipeline")
    async with api.worker.write() as tx:
        permit = await tx.access.permit(app.tenant, app.id, "only")
        assert permit is not None
        await tx.access.delete_permit(permit)
    answer = await api.lease(key)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
