"""A revocation is never given up, says what it can't do, and leaves no key behind."""

import asyncio
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import func, select
from sqlmodel import col

from evergrant_server.api.integrations.changes import retry_failing_connections
from evergrant_server.core.audit import AuditAction, AuditRecord
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.connection import Connection, LifecycleState, RevocationOutcome
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.core.integrations import RefreshRules, Rotation
from evergrant_server.core.messages.base import connection_workflow_id
from evergrant_server.core.messages.connection import ConnectionDescription
from evergrant_server.crypto import KeyPurpose, KeyRing, Role
from evergrant_server.store import Store
from evergrant_server.store.connections.grants import Grants
from evergrant_server.store.keys import KeyRow
from tests.fakes.databases import sqlite_url
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import ASKED, TENANT, Installation
from tests.fakes.platform.processes import running_platform
from tests.fakes.ports import free_port
from tests.fakes.providers.scripted_provider import Answer, ScriptedProvider, error, ok, status
from tests.faults.integrations.test_secret_rotation import rotate
from tests.faults.temporal.test_temporal_lost import add_connections

STRICT = RefreshRules(rotation=Rotation.STRICT)
UNSUPPORTED = error("unsupported_token_type")
REFRESH, ACCESS = "refresh_token", "access_token"


async def keys_of(place: Installation, connection: Connection) -> dict[str, int]:
    query = (
        select(col(KeyRow.purpose), func.count())
        .where(col(KeyRow.connection_id) == connection.id)
        .group_by(col(KeyRow.purpose))
    )
    async with place.store.read() as tx:
        return {purpose: count for purpose, count in await tx.connection.execute(query)}


async def last(place: Installation, connection: Connection, action: AuditAction) -> AuditRecord:
    return [it for it in await place.audited(connection) if it.action is action][-1]


async def described(place: Installation, connection: Connection) -> ConnectionDescription | None:
    return await place.parts.link.describe(TENANT, connection.id)


@pytest.mark.parametrize(
    ("answers", "how", "told"),
    [
        ([ok(), ok()], RevocationOutcome.CONFIRMED, [REFRESH, ACCESS]),
        ([ok(), UNSUPPORTED], RevocationOutcome.CONFIRMED, [REFRESH, ACCESS]),
        ([UNSUPPORTED, ok()], RevocationOutcome.ACCESS_TOKEN_ONLY, [REFRESH, ACCESS]),
        ([UNSUPPORTED, UNSUPPORTED], RevocationOutcome.NOT_SUPPORTED, [REFRESH, ACCESS]),
    ],
)
async def test_rfc7009_2_2_1_the_outcome_names_what_the_provider_revoked(
    place: Installation, idp: ScriptedProvider, answers: list[Answer], how: RevocationOutcome, told: list[str]
):
    """RFC 7009 section 2.2.1."""
    connection = await place.connect(idp, STRICT)
    idp.script(*answers, at="revoke")
    await place.revoke(connection)
    ended = await place.until(connection, lambda row: row.state is LifecycleState.REVOKED)
    assert ended.revocation is how
    hints = [call.params["token_type_hint"] for call in idp.calls if call.endpoint == "revoke"]
    assert hints == told
    assert (await last(place, connection, AuditAction.REVOKED)).detail["how"] == how


async def test_a_revoked_connection_keeps_no_key(place: Installation, idp: ScriptedProvider):
    connection = await place.connect(idp, STRICT)
    backup = await place.grant(connection)
    assert await keys_of(place, connection) == {KeyPurpose.LEASE: 1, KeyPurpose.REFRESH: 1}
    await place.revoke(connection)
    await place.until(connection, lambda row: row.state is LifecycleState.REVOKED)
    assert await keys_of(place, connection) == {}
    assert (await last(place, connection, AuditAction.REVOKED)).detail["keys_destroyed"] == 2
    async with place.store.read() as tx:
        with pytest.raises(Failure) as gone:
            await tx.grants.access_token(await place.row(connection))
        assert gone.value.code is ErrorCode.CONSENT_REQUIRED
    assert backup[1].generation == 1


async def test_the_workflow_reports_the_last_failed_revocation_while_it_retries(
    place: Installation, idp: ScriptedProvider
):
    connection = await place.connect(idp, STRICT)
    idp.script(status(500), status(503, {"Retry-After": "4"}), at="revoke")
    await place.revoke(connection)
    await idp.until("revoke", 2)
    async with asyncio.timeout(PATIENCE_S):
        while (now := await described(place, connection)) is None or now.failures < 2:
            await asyncio.sleep(0.05)
    assert (now.state, now.revocation_failure) == (LifecycleState.REVOKING, ErrorCode.PROVIDER_ERROR)
    first = (await last(place, connection, AuditAction.REVOCATION_FAILED)).at
    assert now.revocation_failing_since is not None
    assert now.revocation_failing_since < first
    assert now.next_at is not None
    await place.until(connection, lambda row: row.state is LifecycleState.REVOKED)
    async with asyncio.timeout(PATIENCE_S):
        while (
            then := await described(place, connection)
        ) is not None and then.state is not LifecycleState.REVOKED:
            await asyncio.sleep(0.05)
    assert then is None or then.revocation_failure is None, "its run has ended, or is about to"


async def test_an_unexpected_error_is_retried_with_growing_pauses(
    place: Installation, idp: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
):
    """Temporal's own retries would hide it and are spaced by at most thirty seconds."""
    connection = await place.connect(idp, STRICT)
    told: list[str] = []

    async def broken(self: Grants, *_: object) -> None:
        told.append("read")
        raise RuntimeError("rt-secret")

    with monkeypatch.context() as broke:
        broke.setattr(Grants, "refresh_token", broken)
        await place.revoke(connection)
        await place.until_audited(connection, AuditAction.REVOCATION_FAILED)
        async with asyncio.timeout(PATIENCE_S):
            while (
                now := await described(place, connection)
            ) is None or now.revocation_failure is not ErrorCode.INTERNAL:
                await asyncio.sleep(0.05)
    failed = await last(place, connection, AuditAction.REVOCATION_FAILED)
    assert failed.detail == {"reason": ErrorCode.INTERNAL}
    await place.until(connection, lambda row: row.state is LifecycleState.REVOKED)
    history = str(await place.parts.link.history(connection_workflow_id(TENANT, connection.id)))
    assert "rt-secret" not in history
    assert "ACTIVITY_TASK_FAILED" not in history
    assert told


async def test_a_repaired_client_secret_retries_the_revocation_at_once(
    place: Installation, idp: ScriptedProvider
):
    """No refresh of it has failed, and it would be tried again after a quarter of an hour."""
    connection = await place.connect(idp, STRICT)
    idp.client_secret = "a secret that was not rotated here"
    await place.revoke(connection)
    async with asyncio.timeout(PATIENCE_S):
        while (
            now := await described(place, connection)
        ) is None or now.revocation_failure is not ErrorCode.CLIENT_REJECTED:
            await asyncio.sleep(0.05)
    integration = await place.integration_of(connection)
    await rotate(place, integration, idp.client_secret)
    async with place.store.write() as tx:
        await retry_failing_connections(tx, integration, ASKED, place.parts.clock.now())
    place.parts.relay.notify()
    await place.until(connection, lambda row: row.state is LifecycleState.REVOKED)


async def test_a_restored_store_does_not_stop_a_revocation(place: Installation, idp: ScriptedProvider):
    """A backup was restored while the workflow was telling the provider."""
    connection = await place.connect(idp, STRICT)
    active = await place.row(connection)
    idp.script(*[status(503, {"Retry-After": "1"})] * 2, at="revoke")
    await place.revoke(connection)
    await idp.until("revoke", 1)
    async with place.store.write() as tx:
        now = await tx.connections.get(TENANT, connection.id)
        assert now is not None
        await tx.connections.replace(active, expected=now.revision)
    ended = await place.until(connection, lambda row: row.state is LifecycleState.REVOKED)
    assert ended.revocation is RevocationOutcome.CONFIRMED


async def lease(caller: httpx2.AsyncClient) -> httpx2.Response:
    return await caller.post("/v1/lease", json={"integration": "crm", "subject": "user-0"})


async def test_no_process_leases_once_another_has_revoked(
    tmp_path: Path, temporal_address: str, idp: ScriptedProvider
):
    """Two API processes with cached rows; no message passes between them."""
    async with running_platform(tmp_path, temporal_address, allow=(idp.allowance,)) as platform:
        await platform.integration("crm", idp)
        key = await platform.app("pipeline", "crm", "token", "connect")
        port = str(free_port())
        await platform.start("api-2", "evergrant_server", "serve", EVERGRANT_PORT=port)
        ring = KeyRing.open(platform.key_file, Role.WORKER)
        store = await Store.open(sqlite_url(platform.data), ring, SystemClock())
        async with store.read() as tx:
            integration = await tx.integrations.by_name(Tenant("default"), "crm")
        assert integration is not None
        await add_connections(store, integration, idp, many=1, age_s=0)
        await store.close()
        other = httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            headers={"Authorization": f"Bearer {key}"},
            trust_env=False,
            timeout=PATIENCE_S,
        )
        async with platform.caller(key) as one, other:
            await until_ready(other)
            for _ in range(20):
                first, second = await asyncio.gather(lease(one), lease(other))
                assert (first.status_code, second.status_code) == (200, 200), (first.text, second.text)
            revoked = await one.post(f"/v1/connections/{first.json()['connection_id']}/revoke", json={})
            assert revoked.status_code == 202
            for answer in await asyncio.gather(*(lease(other) for _ in range(20))):
                assert (answer.status_code, answer.json()["code"]) == (409, "connection_revoked")
            assert (await lease(one)).status_code == 409


async def until_ready(caller: httpx2.AsyncClient) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                if (await caller.get("/readyz")).status_code == 200:
                    return
            except httpx2.TransportError:
                pass  # it isn't listening yet
            await asyncio.sleep(0.05)


async def test_the_api_shows_since_when_a_revocation_fails_and_why(
    tmp_path: Path, temporal_address: str, idp: ScriptedProvider
):
    async with running_platform(tmp_path, temporal_address, allow=(idp.allowance,)) as platform:
        await platform.integration("crm", idp)
        key = await platform.app("pipeline", "crm", "token", "connect")
        ring = KeyRing.open(platform.key_file, Role.WORKER)
        store = await Store.open(sqlite_url(platform.data), ring, SystemClock())
        async with store.read() as tx:
            integration = await tx.integrations.by_name(Tenant("default"), "crm")
        assert integration is not None
        await add_connections(store, integration, idp, many=1, age_s=0)
        await store.close()
        idp.script(*[status(503, {"Retry-After": "3"})] * 2, at="revoke")
        async with platform.caller(key) as caller:
            where = f"/v1/connections/{(await lease(caller)).json()['connection_id']}"
            asked = (await caller.post(f"{where}/revoke", json={})).json()
            assert asked["revoking"]["since"] is not None
            assert asked["revoking"]["failure"] is None
            async with asyncio.timeout(PATIENCE_S):
                while (told := (await caller.get(where)).json())["revoking"]["failure"] is None:
                    await asyncio.sleep(0.05)
            assert told["revoking"]["failure"] == "provider_error"
            assert told["revoking"]["since"] == asked["revoking"]["since"] < told["revoking"]["failed_at"]
            live = (await caller.get(where, params={"live": "true"})).json()["live"]
            assert (live["failed"], live["state"]) == ("provider_error", "revoking")
            async with asyncio.timeout(PATIENCE_S):
                while (told := (await caller.get(where)).json())["state"] != "revoked":
                    await asyncio.sleep(0.05)
            assert told["revoking"] is None
