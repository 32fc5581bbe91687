"""A gateway with a role of its own on PostgreSQL: its calls work, and it writes no other row of authority.

Those of the API and of workers: tests/security/authority/test_database_roles.py.
"""

import base64
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import make_url

from evergrant_server.cli.doctor import report
from evergrant_server.cli.doctor.report import CHECKS, DoctorFinding, diagnose
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ConnectionId
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.settings import load_settings
from evergrant_server.store.authority.covered_fields import GATEWAY_MAY_WRITE
from evergrant_server.store.authority.database_roles import (
    grants,
    put_role,
    rights_of_user,
    scram_verifier,
    writes_of,
)
from evergrant_server.store.authority.scan import ALL
from evergrant_server.store.database.columns import METADATA, table_of
from evergrant_server.store.keys import CURRENT_KEY_TO_SEAL
from tests.fakes.api import Api, running_api
from tests.fakes.databases import lent, postgres
from tests.fakes.failures import fails
from tests.fakes.patience import PATIENCE_S, eventually
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
    test_an_approval_that_the_first_apps_permit_demands_is_demanded_of_those_under_it,
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
    "test_an_approval_that_the_first_apps_permit_demands_is_demanded_of_those_under_it",
    "test_bodies_stream_both_ways",
    "test_further_scopes_need_a_further_consent",
    "test_modern_the_person_logs_in_and_consents_and_the_tool_has_the_connection",
    "test_twenty_calls_at_once_use_one_approval_once",
    "test_without_a_permit_for_it_nothing_is_sent",
]

_OF_TEMPORAL = {name for name, check in CHECKS.items() if check.__module__.endswith(".temporal")}
_OF_TEMPORAL |= {"workflows", "erasures"}
ROLE = f"gateway of {os.getpid()}"  # has to be quoted
WRITES = writes_of(Role.GATEWAY)


@pytest_asyncio.fixture
async def url() -> AsyncIterator[str]:
    """A database in which the role has what a gateway needs, as its owner."""
    async with lent("postgresql", Path()) as owner:
        database = make_url(owner).database
        assert database is not None
        await put_role(owner, Role.GATEWAY, ROLE, "wrong for nobody here")
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


@pytest_asyncio.fixture
async def refused(of_role: str) -> AsyncIterator[Callable[[str], Awaitable[bool]]]:
    """Whether PostgreSQL refuses the role this statement."""
    where = make_url(of_role)
    connection = await asyncpg.connect(host=str(where.query["host"]), user=ROLE, database=where.database)

    async def refuses(statement: str) -> bool:
        try:
            await connection.execute(statement)
        except asyncpg.InsufficientPrivilegeError:
            return True
        return False

    yield refuses
    await connection.close()


async def test_postgresql_refuses_every_other_write(refused: Callable[[str], Awaitable[bool]]):
    for table in METADATA.sorted_tables:
        name = f'"{table.name}"'
        adds = f"INSERT INTO {name} SELECT * FROM {name} WHERE false"
        assert await refused(adds) is (table not in WRITES.inserted), adds
        for column in table.columns:
            changes = f'UPDATE {name} SET "{column.name}" = NULL WHERE false'
            assert await refused(changes) is (column not in WRITES.updated), changes
        for what in ("DELETE FROM {}", "TRUNCATE {} CASCADE", "DROP TABLE {} CASCADE"):
            assert await refused(what.format(name)), what.format(name)
        assert await refused(f"ALTER TABLE {name} DISABLE TRIGGER ALL")
    assert await refused("CREATE TABLE mine (id text)")
    assert await refused("DELETE FROM alembic_version")


def test_of_rows_of_authority_it_adds_those_that_count_with_its_signature():
    authority = {table_of(it): model for it, model in ALL.items()}
    assert {authority[it] for it in WRITES.inserted & authority.keys()} == GATEWAY_MAY_WRITE.keys()
    changed = {(it.table.name, it.name) for it in WRITES.updated if it.table in authority}
    assert changed == {
        *(("call_approval", name) for name in ("state", "used_at", "next_at", "mac", "revision")),
        *(("connection", name) for name in ("consent_deadline", "requested_scopes", "default_scopes")),
        *(("connection", name) for name in ("slot_scopes", "revision")),
        ("integration", "created_at"),
        ("root_key", "created_at"),
    }


async def test_it_holds_the_key_that_it_seals_with(refused: Callable[[str], Awaitable[bool]]):
    """As a rotation expects of each transaction that seals with a connection's key."""
    held = str(
        CURRENT_KEY_TO_SEAL.params(tenant="", purpose="", connection_id="").compile(
            dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True}
        )
    )
    assert not await refused(held)


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
    assert (await rights_of_user(of_role, Role.GATEWAY)) == (ROLE, ([], [], []))
    owner, rights = await rights_of_user(url, Role.GATEWAY)
    assert owner == "postgres"
    assert set(rights.by_nature) >= {"is a superuser", "owns tables"}
    database = make_url(url).database
    assert database is not None
    await postgres().admin(
        f'GRANT UPDATE, DELETE ON permit TO "{ROLE}"',
        f'GRANT UPDATE (state) ON connection TO "{ROLE}"',
        f'REVOKE INSERT ON audit FROM "{ROLE}"',
        database=database,
    )
    _, (lacking, beyond, _) = await rights_of_user(of_role, Role.GATEWAY)
    assert lacking == ["INSERT on audit"]
    assert {"DELETE permit", "UPDATE permit.actions", "UPDATE connection.state"} <= set(beyond)
    await put_role(url, Role.GATEWAY, ROLE)
    assert (await rights_of_user(of_role, Role.GATEWAY)) == (ROLE, ([], [], []))


async def test_doctor_says_what_a_processs_role_may_beyond_its_job_or_lacks(
    api: Api, url: str, of_role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(report, "CHECK_TIMEOUT_S", PATIENCE_S)
    full = api.parts.settings.key_path
    KeyRing.open(full, Role.OPERATOR).export(tmp_path / "gateway.json", Role.GATEWAY)
    of_gateway = {"data_dir": tmp_path, "key_file": tmp_path / "gateway.json"}

    async def diagnosed(**settings: Any) -> dict[str, DoctorFinding]:
        checks = {name: it for name, it in CHECKS.items() if name not in {*_OF_TEMPORAL, "public URL"}}
        found = await diagnose(load_settings(**settings), checks, {})
        return {it.check: it for it in found}

    right = await diagnosed(**of_gateway, database_url=of_role)
    assert [it for it in right.values() if not it.ok] == []
    assert right["database role"].detail == f"{ROLE} reads every row, and writes what a gateway writes alone"
    owner = (await diagnosed(**of_gateway, database_url=url))["database role"]
    assert "postgres, as which a gateway connects, is a superuser and makes roles" in owner.detail
    assert "db upgrade --gateway-role ROLE" in owner.repair
    database = make_url(url).database
    assert database is not None
    await postgres().admin(f'GRANT DELETE ON permit TO "{ROLE}"', database=database)
    more = (await diagnosed(**of_gateway, database_url=of_role))["database role"]
    assert more.detail == f"{ROLE}, as which a gateway connects, may DELETE permit"
    assert more.repair.endswith(f"db upgrade --gateway-role '{ROLE}'")
    of_worker = await diagnosed(data_dir=tmp_path, key_file=full, database_url=url)
    assert of_worker["database role"].detail == "postgres reads and writes every table"
    borrowed = (await diagnosed(data_dir=tmp_path, key_file=full, database_url=of_role))["database role"]
    assert borrowed.detail.startswith(f"the role {ROLE} may not read and write access_request, ")
    assert "EVERGRANT_DATABASE_URL" in borrowed.repair


async def test_a_role_that_is_worth_more_is_refused(url: str):
    with fails(ErrorCode.NOT_FOUND, "no role nobody") as absent:
        await put_role(url, Role.GATEWAY, "nobody")
    assert 'CREATE ROLE "nobody" LOGIN' in absent.value.repair
    with fails(ErrorCode.NOT_PERMITTED, "is a superuser and makes roles"):
        await put_role(url, Role.GATEWAY, "postgres")
    database = make_url(url).database
    assert database is not None
    await postgres().admin(f'GRANT CREATE ON SCHEMA public TO "{ROLE}"', database=database)
    with fails(ErrorCode.NOT_PERMITTED, "makes tables and functions"):
        await put_role(url, Role.GATEWAY, ROLE)
    parent = f"{ROLE} owner"
    statements = (f'CREATE ROLE "{parent}" NOINHERIT', f'ALTER TABLE app OWNER TO "{parent}"')
    await postgres().admin(
        f'REVOKE CREATE ON SCHEMA public FROM "{ROLE}"',
        *statements,
        f'GRANT "{parent}" TO "{ROLE}" WITH INHERIT FALSE',
        database=database,
    )
    try:
        with fails(ErrorCode.NOT_PERMITTED, "owns tables"):
            await put_role(url, Role.GATEWAY, ROLE)
    finally:
        back = ("ALTER TABLE app OWNER TO postgres", f'DROP ROLE "{parent}"')
        await postgres().admin(*back, database=database)


def test_a_role_and_a_schema_are_quoted():
    statements = grants('x"; DROP TABLE app; --', Role.GATEWAY, "evergrant")
    assert all(it.endswith('"x""; DROP TABLE app; --"') for it in statements)
    assert sum('IN SCHEMA "evergrant"' in it for it in statements) == 1


async def test_the_password_is_sent_as_what_postgresql_keeps_of_it(url: str):
    """As PostgreSQL itself makes it: no statement that may be logged has the password."""
    password = "0123456789abcdef ~"
    kept = "SELECT rolpassword FROM pg_authid WHERE rolname = $1"
    where = make_url(url)
    connection = await asyncpg.connect(
        host=str(where.query["host"]), user="postgres", database=where.database
    )
    try:
        await connection.execute(f"ALTER ROLE \"{ROLE}\" PASSWORD '{password}'")
        theirs = str(await connection.fetchval(kept, ROLE))
        salt = base64.b64decode(theirs.partition(":")[2].partition("$")[0])
        assert scram_verifier(password, salt) == theirs
        await put_role(url, Role.GATEWAY, ROLE, password)
        ours = str(await connection.fetchval(kept, ROLE))
        salt = base64.b64decode(ours.partition(":")[2].partition("$")[0])
        assert (scram_verifier(password, salt), ours != theirs) == (ours, True)
    finally:
        await connection.close()
