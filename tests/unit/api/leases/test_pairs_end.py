"""A judged pair ends with what it was judged by, and its leases are bound as all are."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest

from evergrant_server.api.leases import judged_pairs
from evergrant_server.audit.lease_queue import Written
from evergrant_server.cli.tenants import set_disabled
from evergrant_server.core.access import Action, Effect, EnforcementMode
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.crypto import KeyPurpose, KeyRing, SealingKey
from evergrant_server.crypto.envelope import Hold
from evergrant_server.store.connections import lease_rows
from evergrant_server.store.keys import WrappedKey, unwrap
from tests.fakes.api import TENANT, Api, running_api
from tests.fakes.patience import eventually
from tests.unit.api.leases.both_ways import (
    Sent,
    api,
    leased,
    postgres_server,
    put_permit,
)

__all__ = ["api", "postgres_server"]
pytestmark = pytest.mark.usefixtures("limit_time")


async def revoke(api: Api, connection: Connection) -> None:
    await api.change(connection, lambda it: it.revocation_requested("left", api.clock.now()))


async def refresh(api: Api, connection: Connection) -> None:
    await api.install(connection, "at-2")


async def revoke_elsewhere(api: Api, connection: Connection) -> None:
    await api.change(connection, lambda it: it.rejected(ErrorCode.GRANT_REVOKED_ELSEWHERE, api.clock.now()))


async def find_dead(api: Api, connection: Connection) -> None:
    """A worker has found it dead, and asked about the token."""
    now = api.clock.now()
    await api.change(connection, lambda it: it.rejected(ErrorCode.GRANT_REJECTED, now).token_reported())


async def disable_app(api: Api, connection: Connection) -> None:
    app = await api.app_named("pipeline")
    async with api.worker.write() as tx:
        await tx.access.put_app(app.__replace__(disabled=True), expected=app.revision)


async def disable_tenant(api: Api, connection: Connection) -> None:
    await set_disabled(api.worker, api.clock, TENANT, "INC-7", disabled=True)


async def delete_permit(api: Api, connection: Connection) -> None:
    app = await api.app_named("pipeline")
    async with api.worker.write() as tx:
        permit = await tx.access.permit(TENANT, app.id, "only")
        assert permit is not None
        await tx.access.delete_permit(permit)


async def deny(api: Api, connection: Connection) -> None:
    await put_permit(api, "deny", effect=Effect.DENY)


async def observe(api: Api, connection: Connection) -> None:
    await put_permit(api, "deny", effect=Effect.DENY, mode=EnforcementMode.OBSERVE)


async def narrow_permit(api: Api, connection: Connection) -> None:
    await put_permit(api, "only", scope_ceiling=())


async def revoke_key(api: Api, connection: Connection) -> None:
    admin = await api.app_with("boss", Action.ADMIN)
    (shown,) = (await api.get("/v1/apps/pipeline/keys", admin)).json()["items"]
    assert (await api.call("DELETE", f"/v1/apps/pipeline/keys/{shown['id']}", admin)).status_code == 204


async def limit_app(api: Api, connection: Connection) -> None:
    app = await api.app_named("pipeline")
    async with api.worker.write() as tx:
        await tx.access.put_app(app.__replace__(lease_limit=100), expected=app.revision)


@pytest.mark.parametrize(
    ("change", "status", "answer"),
    [
        (revoke, 409, "connection_revoked"),
        (revoke_elsewhere, 409, "consent_required"),
        (find_dead, 409, "consent_required"),
        (refresh, 200, "at-2"),
        (disable_app, 403, "app_disabled"),
        (disable_tenant, 403, "tenant_disabled"),
        (delete_permit, 404, "not_found"),
        (deny, 404, "not_found"),
        (narrow_permit, 403, "scope_not_permitted"),
        (revoke_key, 401, "unauthenticated"),
        (observe, 200, "at-1"),
        (limit_app, 200, "at-1"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_a_change_takes_effect_on_the_very_next_lease_of_a_judged_pair(
    api: Api, change: Callable[[Api, Connection], Awaitable[None]], status: int, answer: str
):
    connection, key = await api.active_for("pipeline", Action.TOKEN)
    for _ in range(3):
        assert (await api.lease(key)).status_code == 200
    assert leased(api) == 2
    await change(api, connection)
    changed = await api.lease(key)
    assert (changed.status_code, changed.json().get("code") or changed.json()["access_token"]) == (
        status,
        answer,
    )
    assert leased(api) == 2, "it was judged anew"
    issued = await api.records(AuditAction.LEASE_ISSUED)
    assert len(issued) == (4 if status == 200 else 3)
    if change is observe:
        assert [record.detail.get("would_be_denied_by") for record in issued][-1] == ["deny"]
    if change is limit_app:
        assert changed.headers["ratelimit"] == '"app";r=99;t=1'
        assert (await api.lease(key)).headers["ratelimit"] == '"app";r=98;t=2'
        assert leased(api) == 2


async def test_a_cached_rows_key_is_unwrapped_once_until_its_row_its_minute_or_its_root_ends(
    api: Api, monkeypatch: pytest.MonkeyPatch
):
    """Of requests that make no pair, and of calls through a gateway."""
    unwrapped: list[str] = []

    def noted(ring: KeyRing, tenant: str, purpose: KeyPurpose, rows: WrappedKey) -> SealingKey:
        unwrapped.append(rows.id)
        return unwrap(ring, tenant, purpose, rows)

    monkeypatch.setattr(lease_rows, "unwrap", noted)
    connection, key = await api.active_for("pipeline", Action.TOKEN)

    async def lease() -> tuple[str, int]:
        tokens = {(await api.lease(key, min_ttl=60)).json()["access_token"] for _ in range(3)}
        return tokens.pop(), len(unwrapped)

    assert await lease() == ("at-1", 1)
    await api.install(connection, "at-2")
    assert await lease() == ("at-2", 2)
    api.clock.advance(61)
    assert await lease() == ("at-2", 3)
    api.parts.ring.hold_of(KeyPurpose.LEASE).over = True
    monkeypatch.setitem(api.parts.ring._holds, KeyPurpose.LEASE, Hold())
    assert await lease() == ("at-2", 4)
    assert leased(api) == 0


@pytest.mark.parametrize("seconds", [30, 61, 120])
async def test_a_pair_is_judged_anew_after_a_minute(api: Api, seconds: int):
    _, key = await api.active_for("pipeline", Action.TOKEN)
    assert (await api.lease(key)).status_code == (await api.lease(key)).status_code == 200
    api.clock.advance(seconds)
    assert (await api.lease(key)).status_code == 200
    assert leased(api) == (2 if seconds < 60 else 1)


async def test_a_pair_holds_no_longer_than_what_was_cached_before_it(api: Api):
    """A caller that was read 50 seconds before is read again 10 seconds later, for all its pairs."""
    connection, key = await api.active_for("pipeline", Action.TOKEN)
    path = f"/v1/connections/{connection.id}/token"
    assert (await api.lease(key)).status_code == 200
    api.clock.advance(50)
    assert (await api.post(path, key)).status_code == (await api.post(path, key)).status_code == 200
    assert leased(api) == 1
    api.clock.advance(11)
    assert (await api.post(path, key)).status_code == 200
    assert leased(api) == 1


async def test_a_due_token_is_refreshed_behind_a_judged_pair(api: Api):
    connection, key = await api.active_for("pipeline", Action.TOKEN)
    api.clock.advance(3270)
    assert (await api.lease(key)).json()["access_token"] == "at-1"
    api.refreshes_with("at-2")
    api.clock.advance(40)  # within the margin of five minutes
    assert (await api.lease(key)).json()["access_token"] == "at-1"
    assert leased(api) == 0
    await eventually(lambda: api.row(TENANT, connection.id), lambda it: it.generation == 2)


@pytest.mark.parametrize("what_ends", ["key", "permit"])
async def test_what_ends_meanwhile_ends_the_pair(api: Api, what_ends: str):
    _, key = await api.active_for("pipeline", Action.TOKEN)
    admin = await api.app_with("boss", Action.ADMIN)
    if what_ends == "key":
        key = (await api.post("/v1/apps/pipeline/keys", admin, {"lifetime": 60})).json()["key"]
    else:
        await put_permit(api, "only", expires_at=api.clock.now() + timedelta(seconds=60))
    api.clock.advance(10)
    for _ in range(2):
        assert (await api.lease(key)).status_code == 200
    assert leased(api) == 1
    api.clock.advance(50)
    assert (await api.lease(key)).status_code in (401, 404)


async def test_a_judged_pair_raises_the_alarm_on_many_connections(tmp_path: Path):
    async with running_api(tmp_path, bulk_read_alarm=2) as api:
        integration, path = await api.integration(), "/v1/connections/{}/token"
        made = [await api.active(integration, lifetime=None, subject=f"user-{n}") for n in range(2)]
        key = await api.app_with("pipeline", Action.TOKEN)
        await api.post(path.format(made[0].id), key)
        api.clock.advance(3580)
        for connection in made:  # the second raises it
            await api.post(path.format(connection.id), key)
        assert len(await api.records(AuditAction.BULK_READ)) == 1
        api.clock.advance(30)  # another hour
        before = leased(api)
        for connection in made:
            headers = {"X-Request-Id": "ab" * 16}
            assert (await api.post(path.format(connection.id), key, headers=headers)).status_code == 200
        assert leased(api) - before == 2
        *_, alarm = await api.records(AuditAction.BULK_READ)
        assert (alarm.detail["kind"], alarm.context.trace_id) == ("lease", "ab" * 16)


async def test_a_lease_that_isnt_recorded_doesnt_leave(api: Api, monkeypatch: pytest.MonkeyPatch):
    _, key = await api.active_for("pipeline", Action.TOKEN)
    assert (await api.lease(key)).status_code == (await api.lease(key)).status_code == 200
    assert leased(api) == 1

    async def no_room(*_: object) -> Written:
        raise Failure(ErrorCode.STORE_UNAVAILABLE, "no room on the disk")

    monkeypatch.setattr(api.parts.ledger, "_write", no_room)
    answer = await api.lease(key)
    assert (answer.status_code, answer.json()["code"]) == (503, "audit_unavailable")
    assert leased(api) == 1


@pytest.mark.parametrize("waits_for", ["the body", "the ledger"])
async def test_a_lease_of_a_judged_pair_takes_no_longer_than_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits_for: str
):
    monkeypatch.setattr(judged_pairs, "LEASE_SLACK_S", 0.0)
    monkeypatch.setattr("evergrant_server.api.http.middleware.LEASE_SLACK_S", 0.0)
    async with running_api(tmp_path, lease_wait=2.0) as api:  # which the two leases before have, too
        _, key = await api.active_for("pipeline", Action.TOKEN)
        assert (await api.lease(key)).status_code == (await api.lease(key)).status_code == 200
        never = asyncio.Event()

        async def hanging(*_: object) -> None:
            await never.wait()

        if waits_for == "the ledger":
            monkeypatch.setattr(api.parts.ledger, "record_pair", hanging)
        status, _, body = await Sent("late").to(
            api.app, key, "/v1/lease", never if waits_for == "the body" else None
        )
        assert (status, json.loads(body)["code"]) == (503, "store_unavailable")
        assert json.loads(body)["detail"] == "No answer within 2 seconds."
        monkeypatch.undo()
        assert (await api.lease(key)).status_code == 200, "the task's cancellation was taken back"
