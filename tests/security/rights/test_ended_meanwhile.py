"""A command whose caller or tenant was stopped after it was authenticated changes nothing."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from evergrant_server.access import erasure, judged_request
from evergrant_server.api.transfer import intake
from evergrant_server.cli.tenants import set_disabled
from evergrant_server.core.access import Action, MovePhase
from evergrant_server.core.people.roles import PersonRole
from tests.fakes.api import TENANT, Api
from tests.security.people import put_session

_MODULES = {"a command": judged_request, "an import": intake, "an erasure": erasure}


def meanwhile(
    monkeypatch: pytest.MonkeyPatch, what: str, happens: Callable[[], Awaitable[object]], *, after: int = 0
) -> None:
    """Has something happen when `what` is about to begin a transaction, its first or one `after` it."""
    module, waits = _MODULES[what], [happens]
    run = vars(module)["run_transaction"]
    begun = 0

    async def begin(*given: Any, **options: Any) -> Any:
        nonlocal begun
        begun += 1
        if begun > after and waits:
            await waits.pop()()
        return await run(*given, **options)

    monkeypatch.setattr(module, "run_transaction", begin)


async def an_admin(api: Api) -> tuple[str, str]:
    """Keys of two admins; the second one's app is `boss`, and another app is `sync`."""
    await api.app_with("sync", Action.TOKEN)
    return await api.app_with("first", Action.ADMIN), await api.app_with("boss", Action.ADMIN)


async def key_ids(api: Api, admin: str, app: str) -> list[str]:
    return [key["id"] for key in (await api.get(f"/v1/apps/{app}/keys", admin)).json()["items"]]


@pytest.mark.parametrize(
    "stop", ["DELETE /v1/apps/boss/keys/{key}", "DELETE /v1/apps/boss", "PUT /v1/apps/boss"]
)
async def test_a_stolen_key_makes_no_other_one(api: Api, monkeypatch: pytest.MonkeyPatch, stop: str):
    first, boss = await an_admin(api)
    (id,) = await key_ids(api, first, "boss")
    before = await key_ids(api, first, "sync")
    method, path = stop.format(key=id).split()

    async def stopped() -> None:
        body = {"json": {"disabled": True}} if method == "PUT" else {}
        assert (await api.call(method, path, first, **body)).is_success

    meanwhile(monkeypatch, "a command", stopped)
    answer = await api.post("/v1/apps/sync/keys", boss)
    assert (answer.status_code, answer.json()["code"]) == (409, "store_conflict")
    assert await key_ids(api, first, "sync") == before
    assert (await api.post("/v1/apps/sync/keys", boss)).status_code in (401, 403)


async def test_a_session_that_was_ended_makes_no_key(api: Api, monkeypatch: pytest.MonkeyPatch):
    first, _ = await an_admin(api)
    before = await key_ids(api, first, "sync")
    id, bearer = await put_session(api, TENANT, PersonRole.TENANT_ADMIN)

    async def ended() -> None:
        assert (await api.call("DELETE", f"/v1/sessions/{id}", first)).is_success

    meanwhile(monkeypatch, "a command", ended)
    assert (await api.post("/v1/apps/sync/keys", bearer)).status_code == 401
    assert await key_ids(api, first, "sync") == before


async def test_an_import_ends_with_the_right_to_it(api: Api, monkeypatch: pytest.MonkeyPatch):
    first, boss = await an_admin(api)
    await api.integration("crm")
    items = [
        {"integration": "crm", "subject": f"s-{number}", "access_token": "a", "never_expires": True}
        for number in range(40)
    ]

    async def disabled() -> None:
        assert (await api.call("PUT", "/v1/apps/boss", first, json={"disabled": True})).is_success

    meanwhile(monkeypatch, "an import", disabled, after=1)
    answer = await api.post("/v1/connections/import", boss, {"items": items, "verify": False})
    assert (answer.status_code, answer.json()["code"]) == (409, "store_conflict")
    listed = (await api.get("/v1/connections?limit=100", first)).json()["items"]
    assert len(listed) == 25


@pytest.mark.parametrize("what", ["a command", "an erasure"])
@pytest.mark.parametrize("code", ["tenant_disabled", "tenant_moved"])
async def test_nothing_is_changed_for_a_tenant_that_is_stopped_or_moves(
    api: Api, monkeypatch: pytest.MonkeyPatch, what: str, code: str
):
    connection, _ = await api.active_for("sync", Action.TOKEN)
    admin = await api.app_with("first", Action.ADMIN)

    async def stopped() -> None:
        if code == "tenant_disabled":
            await set_disabled(api.worker, api.clock, TENANT, "INC-7", disabled=True)
            return
        async with api.worker.write() as tx:
            standing = await tx.tenants.standing(TENANT)
            moved = standing.__replace__(phase=MovePhase.MOVED, moved_to="https://b.example")
            await tx.tenants.put(moved, expected=standing.revision)

    meanwhile(monkeypatch, what, stopped)
    if what == "a command":
        answer = await api.post("/v1/apps/sync/keys", admin)
    else:
        answer = await api.post("/v1/erasures", admin, {"connection_id": connection.id, "reason": "GDPR-1"})
    assert answer.json()["code"] == code
    async with api.worker.read() as tx:
        app = await tx.access.app_by_name(TENANT, "sync")
        assert app is not None
        assert len(await tx.access.keys(TENANT, app.id)) == 1
        assert not await tx.erasures.page(TENANT, None, 1)
