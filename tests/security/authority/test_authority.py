"""Write access to the database gives no token (invariant 11): each attack is carried out by SQL."""

import logging
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from activities.reconcile import report_broken_rows
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.ids import KeyId, new_id
from evergrant_server.store.access import AppKeyRow, AppRow
from evergrant_server.store.audit_tables import AuditTreeRow
from evergrant_server.store.connections.tables import ConnectionRow
from evergrant_server.store.database.columns import Row
from evergrant_server.store.database.rows import columns_equal
from evergrant_server.store.permits import PermitRow
from tests.fakes.api import TENANT, Api


async def by_hand(api: Api, table: type[Row], *, where: dict[str, str], **values: Any) -> None:
    async with api.worker.write() as tx:
        await tx.connection.execute(update(table).where(columns_equal(table, **where)).values(values))


async def planted(api: Api, table: type[Row], *, like: str, **values: Any) -> None:
    """A row made by hand: a copy of another one, with other values."""
    async with api.worker.write() as tx:
        found = (
            (await tx.connection.execute(select(table).where(columns_equal(table, id=like)))).mappings().one()
        )
        await tx.connection.execute(insert(table).values({**found, "id": new_id(like[:3]), **values}))


async def row_id(api: Api, table: type[Row], **equal: str) -> str:
    async with api.worker.read() as tx:
        return (
            (await tx.connection.execute(select(table).where(columns_equal(table, **equal))))
            .mappings()
            .one()["id"]
        )


async def refused(api: Api, key: str, row: str, **more: Any) -> None:
    answer = await api.lease(key, **more)
    assert (answer.status_code, answer.json()["code"]) == (500, "authority_broken")
    assert answer.json()["row"] == row


async def test_a_permit_put_in_by_hand_leases_nothing(api: Api, caplog: pytest.LogCaptureFixture):
    _, key = await api.active_for("sync", Action.TOKEN)
    weak = await api.app_with("weak")
    app = await row_id(api, AppRow, name="weak")
    good = await row_id(api, PermitRow, name="only")
    await planted(api, PermitRow, like=good, app_id=app)
    planted_id = await row_id(api, PermitRow, app_id=app)
    with caplog.at_level(logging.ERROR):
        await refused(api, weak, planted_id)
    assert [it.object for it in caplog.records if it.message.startswith("authority broken")] == [planted_id]  # type: ignore[attr-defined]  # an `extra`
    assert (await api.lease(key)).status_code == 200


async def test_an_app_put_in_by_hand_with_key_and_permit_leases_nothing(api: Api):
    _, key = await api.active_for("sync", Action.TOKEN)
    app = await row_id(api, AppRow, name="sync")
    await planted(api, AppRow, like=app, name="planted")
    new = await row_id(api, AppRow, name="planted")
    await by_hand(api, AppKeyRow, where={"app_id": app}, app_id=new)
    await by_hand(api, PermitRow, where={"app_id": app}, app_id=new)
    answer = await api.lease(key)
    assert answer.status_code in (401, 500)
    assert "access_token" not in answer.json()


async def test_a_revoked_key_revived_by_hand_authenticates_nobody(api: Api, caplog: pytest.LogCaptureFixture):
    """Its secret is right. A key that was put in by hand has none of ours: see `test_keys`."""
    _, key = await api.active_for("sync", Action.TOKEN)
    id = KeyId("_".join(key.split("_")[1:3]))
    async with api.worker.write() as tx:
        await tx.access.revoke_key(TENANT, id, api.clock.now())
    await by_hand(api, AppKeyRow, where={"id": id}, revoked_at=None)
    with caplog.at_level(logging.ERROR):
        assert (await api.lease(key)).status_code == 401
    assert any(it.message.startswith("authority broken") for it in caplog.records)


async def test_a_disabled_app_enabled_by_hand_leases_nothing(api: Api):
    _, key = await api.active_for("sync", Action.TOKEN)
    admin = await api.app_with("boss", Action.ADMIN)
    assert (await api.call("PUT", "/v1/apps/sync", admin, json={"disabled": True})).status_code == 200
    app = await row_id(api, AppRow, name="sync")
    await by_hand(api, AppRow, where={"id": app}, disabled=False)
    await refused(api, key, app)
    assert (await api.call("PUT", "/v1/apps/sync", admin, json={})).status_code == 200  # the repair
    assert (await api.lease(key)).status_code == 200


async def test_another_persons_connection_renamed_by_hand_is_leased_to_nobody(api: Api):
    victim, _ = await api.active_for("sync", Action.TOKEN)
    mine = await api.app_with("mine", Action.TOKEN, Action.CONNECT, subjects=("attacker",))
    await by_hand(api, ConnectionRow, where={"id": victim.id}, subject="attacker")
    await refused(api, mine, victim.id, subject="attacker")
    for path in (f"/v1/connections/{victim.id}", f"/v1/connections/{victim.id}/reauthorize"):
        method = "GET" if path.endswith(victim.id) else "POST"
        assert (await api.call(method, path, mine)).json()["code"] == "authority_broken"
    refusals = await api.records(AuditAction.LEASE_REFUSED)
    assert [it.detail["code"] for it in refusals] == ["authority_broken"]


async def test_a_connection_with_broken_names_can_be_revoked(api: Api):
    victim, _ = await api.active_for("sync", Action.TOKEN)
    admin = await api.app_with("boss", Action.ADMIN)
    await by_hand(api, ConnectionRow, where={"id": victim.id}, subject="attacker")
    assert (await api.post(f"/v1/connections/{victim.id}/revoke", admin)).status_code == 202


async def test_no_token_leaves_behind_a_log_that_was_cut(api: Api):
    """Nor does it stop anything else: a revocation is still recorded."""
    connection, key = await api.active_for("sync", Action.TOKEN, Action.CONNECT)
    assert (await api.lease(key)).status_code == 200
    assert (await api.lease(key, subject="nobody")).status_code == 409  # recorded in another tree
    await by_hand(api, AuditTreeRow, where={"tenant": TENANT}, peaks=b"f" * 32)
    await refused(api, key, f"{TENANT}/api-test")
    assert (await api.post(f"/v1/connections/{connection.id}/revoke", key)).status_code == 202


async def test_the_recurring_pass_records_a_broken_row_once_a_day(api: Api):
    await api.active_for("sync", Action.TOKEN)
    permit = await row_id(api, PermitRow, name="only")
    await by_hand(api, PermitRow, where={"id": permit}, integration="crm")
    now = api.clock.now()
    for hours in (0, 1, 25):
        await report_broken_rows(api.worker, now + timedelta(hours=hours))
    found = await api.records(AuditAction.AUTHORITY_BROKEN)
    assert [(it.object, it.detail) for it in found] == [(permit, {"table": "permit"})] * 2
