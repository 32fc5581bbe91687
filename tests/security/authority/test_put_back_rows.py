"""An end stays an end (invariants 7, 11): an authentic row from before it, put back, revives nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update

from evergrant_server.cli.tenants import set_disabled
from evergrant_server.core.access import Action
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.people.roles import PersonRole
from evergrant_server.store.access import AppKeyRow, AppRow
from evergrant_server.store.agents.delegations import DelegationRow
from evergrant_server.store.authority.scan import broken_configuration, broken_connections
from evergrant_server.store.connections.tables import ConnectionRow
from evergrant_server.store.database.columns import Row
from evergrant_server.store.database.rows import columns_equal
from evergrant_server.store.decisions import ApprovalRow, CallApprovalRow
from evergrant_server.store.oauth.tables import TokenFamilyRow
from evergrant_server.store.people.people import AdminLoginRow, PersonSessionRow
from evergrant_server.store.permits import PermitRow
from evergrant_server.store.tenants import TenantStandingRow
from tests.fakes.api import TENANT, Api, running_api
from tests.fakes.failures import fails
from tests.fakes.platform.gateway_clients import authorized_client
from tests.fakes.providers.login_issuer import LoginIssuer
from tests.security.delegation.delegating import Delegating, id_of
from tests.security.people import people_log_in, put_session
from tests.security.test_agents import CALL, PATH, an_approved_call, used


@asynccontextmanager
async def put_back(api: Api, *tables: type[Row]) -> AsyncIterator[None]:
    """Has the rows of these tables, revisions included, as they were before the block."""
    async with api.worker.read() as tx:
        rows = {
            table: [dict(it) for it in (await tx.connection.execute(select(table))).mappings()]
            for table in tables
        }
    yield
    async with api.worker.write() as tx:
        for table in tables:
            for row in rows[table]:
                mine = columns_equal(table, tenant=row["tenant"], id=row["id"])
                if not (await tx.connection.execute(update(table).where(mine).values(row))).rowcount:
                    await tx.connection.execute(insert(table).values(row))


async def forgotten(api: Api) -> None:
    """Lets pass the minute for which a process answers from memory."""
    api.clock.advance(60)


async def named(api: Api, row: str) -> None:
    assert row in {it.row for it in await broken_configuration(api.worker)}


async def test_a_revoked_key(api: Api):
    _, key = await api.active_for("sync", Action.TOKEN)
    admin = await api.app_with("boss", Action.ADMIN)
    id = "_".join(key.split("_")[1:3])
    assert (await api.lease(key)).status_code == 200  # the process remembers the caller
    async with put_back(api, AppKeyRow, AppRow):
        assert (await api.call("DELETE", f"/v1/apps/sync/keys/{id}", admin)).status_code == 204
    await forgotten(api)
    assert (await api.lease(key)).status_code == 401
    await named(api, id)


async def test_a_disabled_app(api: Api):
    _, key = await api.active_for("sync", Action.TOKEN)
    admin = await api.app_with("boss", Action.ADMIN)
    async with put_back(api, AppRow):
        assert (await api.call("PUT", "/v1/apps/sync", admin, json={"disabled": True})).status_code == 200
    answer = await api.lease(key)
    assert (answer.status_code, answer.json()["code"]) == (500, "authority_broken")
    assert (await api.call("PUT", "/v1/apps/sync", admin, json={"disabled": False})).status_code == 200
    assert (await api.lease(key)).status_code == 200  # enabled by an admin, it isn't one that was put back


async def test_a_deleted_permit(api: Api):
    _, key = await api.active_for("sync", Action.TOKEN)
    admin = await api.app_with("boss", Action.ADMIN)
    async with put_back(api, PermitRow, AppRow):
        assert (await api.call("DELETE", "/v1/apps/sync/permits/only", admin)).status_code == 204
    answer = await api.lease(key)
    assert (answer.status_code, answer.json()["code"]) == (500, "authority_broken")
    await named(api, answer.json()["row"])


async def test_a_revocation(api: Api):
    connection, key = await api.active_for("sync", Action.TOKEN, Action.CONNECT)
    assert (await api.lease(key)).status_code == 200
    async with put_back(api, ConnectionRow):
        assert (await api.post(f"/v1/connections/{connection.id}/revoke", key)).status_code == 202
    await forgotten(api)
    answer = await api.lease(key)
    assert (answer.status_code, answer.json()["code"]) == (500, "authority_broken")
    assert answer.json()["row"] == connection.id


async def test_a_disabled_tenant(api: Api):
    _, key = await api.active_for("sync", Action.TOKEN)
    async with put_back(api, TenantStandingRow):
        await set_disabled(api.worker, api.clock, TENANT, "INC-7", disabled=True)
    answer = await api.lease(key)
    assert (answer.status_code, answer.json()["code"]) == (500, "authority_broken")


async def test_a_used_approval_of_a_call(api: Api):
    bot, connection_id = await an_approved_call(api, CALL)
    async with put_back(api, CallApprovalRow):
        assert await used(api, bot, connection_id, CALL) == "used"
    assert await used(api, bot, connection_id, CALL) == "authority_broken"


async def test_a_denied_call(api: Api):
    """Its request can be put back, and asked for again: it stays undecided, and isn't approved by hand."""
    bot, connection_id = await an_approved_call(api, CALL)
    admin = await api.app_with("second", Action.ADMIN)
    wanted = {"connection_id": connection_id, **CALL, "body": "other", "reason": "again"}
    id = (await api.post(PATH, bot, wanted)).json()["id"]
    async with put_back(api, CallApprovalRow):
        assert (await api.post(f"{PATH}/{id}/deny", admin, {"note": "no"})).status_code == 200
    assert (await api.post(f"{PATH}/{id}/approve", admin)).json()["code"] == "authority_broken"


async def test_a_session_that_was_ended(api: Api):
    admin = await api.app_with("boss", Action.ADMIN)
    id, bearer = await put_session(api, TENANT, PersonRole.TENANT_ADMIN)
    assert (await api.get("/v1/apps", bearer)).status_code == 200
    async with put_back(api, PersonSessionRow):
        assert (await api.call("DELETE", f"/v1/sessions/{id}", admin)).status_code == 204
    assert (await api.get("/v1/apps", bearer)).status_code in (401, 500)
    await named(api, id)


@pytest.mark.parametrize("rows", [(DelegationRow,), (DelegationRow, AppRow)])
async def test_a_stopped_delegation(api: Api, rows: tuple[type[Row], ...]):
    admin = await api.app_with("boss", Action.ADMIN)
    some = Delegating(api, admin)
    await some.prepare()
    await api.active(await api.integration())
    token = await some.token()
    assert (await api.lease(token)).status_code == 200
    async with put_back(api, *rows):
        stopped: Any = await api.post(f"/v1/delegations/{id_of(token)}/stop", admin, {"reason": "over"})
        assert stopped.status_code == 200
    await forgotten(api)
    assert (await api.lease(token)).status_code in (401, 403, 500)
    await named(api, id_of(token))


@pytest.mark.parametrize("rows", [(TokenFamilyRow,), (TokenFamilyRow, AppRow)])
async def test_an_ended_family(api: Api, rows: tuple[type[Row], ...]):
    admin = await api.app_with("boss", Action.ADMIN)
    await api.app_with("agent", Action.PROXY)
    client = await authorized_client(api, "agent")
    tokens = await client.tokens()
    (family,) = (await api.get("/v1/token-families", admin)).json()["items"]
    async with put_back(api, *rows):
        assert (await api.call("DELETE", f"/v1/token-families/{family['id']}", admin)).is_success
    refused = await client.refresh(tokens["refresh_token"])
    assert "access_token" not in refused.json()
    assert family["id"] in {it.row async for it in broken_connections(api.worker)}


async def test_a_used_approval_of_a_command(tmp_path: Path):
    async with running_api(tmp_path) as api:
        first, second = [await api.app_with(name, Action.ADMIN) for name in ("first", "second")]
        await api.app_with("sync", Action.TOKEN)
        api.parts.settings.four_eyes = True
        asked = await api.post("/v1/apps/sync/keys", first, {})
        id = asked.json()["approval_id"]
        assert (await api.post(f"/v1/approvals/{id}", second, {})).is_success
        async with put_back(api, ApprovalRow):
            assert (await api.post("/v1/apps/sync/keys", first, {})).status_code == 201
        again = await api.post("/v1/apps/sync/keys", first, {})
        assert (again.status_code, again.json()["code"]) == (500, "authority_broken")
        await named(api, id)


async def test_a_login_that_was_replaced(api: Api):
    """The rule of before, at an issuer of before, lets nobody in."""
    async with LoginIssuer(api.clock.now) as issuer:
        key = await people_log_in(api, issuer)
        async with put_back(api, AdminLoginRow):
            assert (await api.call("DELETE", "/v1/admin-login", key)).status_code == 204
        assert (await api.get("/login")).status_code == 500
        async with api.worker.read() as tx:
            with fails(ErrorCode.AUTHORITY_BROKEN, "admin_login"):
                await tx.admin_logins.of_tenant(TENANT)


async def test_an_app_from_before_a_deny(api: Api):
    """The deny's row is deleted, and the app that names it is as it was before."""
    _, key = await api.active_for("sync", Action.TOKEN)
    admin = await api.app_with("boss", Action.ADMIN)
    deny = {"integration": "*", "actions": ["token"], "effect": "deny"}
    async with put_back(api, AppRow):
        assert (await api.call("PUT", "/v1/apps/sync/permits/stop", admin, json=deny)).status_code == 201
        assert "access_token" not in (await api.lease(key)).json()
    async with api.worker.write() as tx:
        await tx.connection.execute(delete(PermitRow).where(columns_equal(PermitRow, name="stop")))
    answer = await api.lease(key)
    assert (answer.status_code, answer.json()["code"]) == (500, "authority_broken")
    await named(api, answer.json()["row"])
