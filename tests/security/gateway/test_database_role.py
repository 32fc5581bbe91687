"""A gateway with a role of its own on PostgreSQL: its calls work, and it writes no other row of authority."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy.engine import make_url

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ConnectionId
from evergrant_server.store.database.columns import METADATA, table_of
from evergrant_server.store.review.authority_fields import GATEWAY_MAY_WRITE
from evergrant_server.store.review.authority_tables import ALL
from evergrant_server.store.review.gateway_role import (
    grants,
    inserted,
    put_gateway_role,
    rights_of_user,
    updated,
)
from tests.fakes.api import Api, running_api
from tests.fakes.databases import lent, postgres
from tests.fakes.failures import fails
from tests.fakes.patience import eventually
from tests.fakes.platform.gateway import Gateway, RawUpstream, running_gateway
from tests.fakes.platform.mcp_client import mcp_client
from tests.fakes.providers.login_issuer import LoginIssuer
from tests.security.gateway.test_approved_calls import (
    test_a_permit_that_demands_approval_lets_exactly_the_approved_call_through_once,
)
from tests.security.gateway.test_calls import (
    test_a_call_arrives_with_the_credential_and_is_recorded_before_and_after,
    test_bodies_stream_both_ways,
    test_without_a_permit_for_it_nothing_is_sent,
)
from tests.security.gateway.test_delegated_calls import (
    some,
    test_attack_25_a_stop_of_the_parent_cuts_the_childs_stream_and_refuses_its_next_call,
)
from tests.security.gateway.test_mcp_approvals import (
    test_a_call_leads_to_its_approval_and_is_made_once,
    test_twenty_calls_at_once_use_one_approval_once,
)
from tests.security.gateway.test_mcp_consents import (
    ASK,
    an_agent,
    issuer,
    test_further_scopes_need_a_further_consent,
    test_modern_the_person_logs_in_and_consents_and_the_tool_has_the_connection,
)

__all__ = [
    "issuer",
    "some",
    "test_a_call_arrives_with_the_credential_and_is_recorded_before_and_after",
    "test_a_call_leads_to_its_approval_and_is_made_once",
    "test_a_permit_that_demands_approval_lets_exactly_the_approved_call_through_once",
    "test_attack_25_a_stop_of_the_parent_cuts_the_childs_stream_and_refuses_its_next_call",
    "test_bodies_stream_both_ways",
    "test_further_scopes_need_a_further_consent",
    "test_modern_the_person_logs_in_and_consents_and_the_tool_has_the_connection",
    "test_twenty_calls_at_once_use_one_approval_once",
    "test_without_a_permit_for_it_nothing_is_sent",
]

ROLE = f"gateway of {os.getpid()}"  # has to be quoted


@pytest_asyncio.fixture
async def url() -> AsyncIterator[str]:
    """A database in which the role has what a gateway needs, as its owner."""
    async with lent("postgresql", Path()) as owner:
        database = make_url(owner).database
        assert database is not None
        await put_gateway_role(owner, ROLE, "wrong for nobody here")
        yield owner
        await postgres().admin(f'DROP OWNED BY "{ROLE}"', f'DROP ROLE "{ROLE}"', database=database)


@pytest.fixture
def of_role(url: str) -> str:
    """The same database as the role."""
    return make_url(url).set(username=ROLE).render_as_string(hide_password=False)


@pytest_asyncio.fixture
async def api(tmp_path: Path, url: str) -> AsyncIterator[Api]:
    async with running_api(tmp_path, database_url=url) as running:
        yield running


@pytest_asyncio.fixture
async def gateway(api: Api, upstream: RawUpstream, of_role: str) -> AsyncIterator[Gateway]:
    async with running_gateway(api, upstream, database_url=of_role) as running:
        yield running


async def _tries(of_role: str, statement: str) -> str:
    """The SQLSTATE with which PostgreSQL answers the role's statement; "" when it does what it says."""
    where = make_url(of_role)
    connection = await asyncpg.connect(host=str(where.query["host"]), user=ROLE, database=where.database)
    try:
        await connection.execute(statement)
    except asyncpg.PostgresError as error:
        return str(error.sqlstate)
    finally:
        await connection.close()
    return ""


_REFUSED = "42501"  # insufficient_privilege


@pytest.mark.parametrize("table", METADATA.tables)
async def test_postgresql_refuses_every_other_write(of_role: str, table: str):
    quoted, columns = f'"{table}"', METADATA.tables[table].columns
    may_add, may_change = METADATA.tables[table] in inserted(), {it for it in columns if it in updated()}
    adds = await _tries(of_role, f"INSERT INTO {quoted} SELECT * FROM {quoted} WHERE false")
    assert adds == ("" if may_add else _REFUSED)
    for column in columns:
        changes = await _tries(of_role, f'UPDATE {quoted} SET "{column.name}" = NULL WHERE false')
        assert changes == ("" if column in may_change else _REFUSED), column
    for statement in (f"DELETE FROM {quoted}", f"TRUNCATE {quoted} CASCADE", f"DROP TABLE {quoted} CASCADE"):
        assert await _tries(of_role, statement) == _REFUSED, statement
    disabling = f"ALTER TABLE {quoted} DISABLE TRIGGER ALL"
    assert await _tries(of_role, disabling) == _REFUSED


def test_of_rows_of_authority_it_adds_those_that_count_with_its_signature():
    authority = {table_of(it): model for it, model in ALL.items()}
    assert {authority[it] for it in inserted() & authority.keys()} == GATEWAY_MAY_WRITE.keys()
    changed = {(it.table.name, it.name) for it in updated() if it.table in authority}
    assert changed == {
        *(("call_approval", name) for name in ("state", "used_at", "next_at", "mac", "revision")),
        *(("connection", name) for name in ("consent_deadline", "requested_scopes", "default_scopes")),
        *(("connection", name) for name in ("slot_scopes", "revision")),
        ("integration", "created_at"),
    }


async def test_what_happens_in_a_call_reaches_webhooks(api: Api, gateway: Gateway, upstream: RawUpstream):
    """The event of an approval that is asked for, and its delivery, are rows that a gateway adds."""
    admin = await api.app_with("admin", Action.ADMIN)
    hook = {"url": "https://hooks.example.com/", "events": ["call_approval.requested"]}
    assert (await api.call("PUT", "/v1/webhooks/ops", admin, json=hook)).status_code == 201
    connection, key = await api.active_for("agent", Action.PROXY)
    asked = {"connection_id": connection.id, "method": "POST", "path": "/refunds", "reason": "order 7"}
    async with mcp_client(gateway, key) as client:
        answer = (await client.call_tool("request_approval", asked)).structured_content
    assert answer["state"] == "waiting"
    deliveries = (await api.get("/v1/webhooks/ops/deliveries", admin)).json()["items"]
    assert [it["event_type"] for it in deliveries] == ["call_approval.requested"]


async def test_a_pending_connections_link_is_offered_for_other_scopes(
    api: Api, gateway: Gateway, issuer: LoginIssuer
):
    key = await an_agent(api, issuer)
    async with mcp_client(gateway, key) as client:
        for scopes in (["read_user"], ["read_api"]):
            await client.call_tool("request_connection", {**ASK, "scopes": scopes})
    (created,) = await api.records(AuditAction.CONNECTION_CREATED)
    async with api.worker.read() as tx:
        offered = await tx.connections.get(created.tenant, ConnectionId(created.object))
    assert offered is not None
    assert offered.requested_scopes == ("read_api",)


async def test_what_it_used_and_how_calls_ended_is_written(api: Api, gateway: Gateway):
    connection, key = await api.active_for("sync", Action.PROXY)
    assert (await gateway.get(f"/v1/proxy/{connection.id}/user", key)).status_code == 200

    async def ended() -> list[str]:
        return [it.action for it in await api.records(AuditAction.PROXY_CALLED, AuditAction.PROXY_ANSWERED)]

    await eventually(ended, lambda it: len(it) == 2)
    (used,) = (await api.get("/v1/apps/sync/keys", await api.app_with("boss", Action.ADMIN))).json()["items"]
    assert used["last_used_at"] is not None


async def test_its_rights_are_exact_and_are_restored(url: str, of_role: str):
    assert (await rights_of_user(of_role)) == (ROLE, ([], []))
    owner, rights = await rights_of_user(url)
    assert owner == "postgres"
    assert any("all that the owner of" in it for it in rights.beyond)
    database = make_url(url).database
    assert database is not None
    await postgres().admin(
        f'GRANT UPDATE, DELETE ON permit TO "{ROLE}"',
        f'GRANT UPDATE (state) ON connection TO "{ROLE}"',
        f'REVOKE INSERT ON audit FROM "{ROLE}"',
        database=database,
    )
    _, (lacking, beyond) = await rights_of_user(of_role)
    assert lacking == ["INSERT on audit"]
    assert {"DELETE permit", "UPDATE permit.actions", "UPDATE connection.state"} <= set(beyond)
    await put_gateway_role(url, ROLE)
    assert (await rights_of_user(of_role)) == (ROLE, ([], []))


async def test_a_role_that_is_worth_more_is_refused(url: str):
    with fails(ErrorCode.NOT_FOUND, "no role nobody") as absent:
        await put_gateway_role(url, "nobody")
    assert 'CREATE ROLE "nobody" LOGIN' in absent.value.repair
    with fails(ErrorCode.NOT_PERMITTED, "all that the owner"):
        await put_gateway_role(url, "postgres")


def test_a_role_and_a_schema_are_quoted():
    statements = grants('x"; DROP TABLE app; --', "evergrant")
    assert all(it.endswith('"x""; DROP TABLE app; --"') for it in statements)
    assert sum('IN SCHEMA "evergrant"' in it for it in statements) == 1
