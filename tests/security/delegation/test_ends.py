"""Attack 25: what ends a delegation ends all that was delegated by it, from the commit on."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from tests.fakes.api import Api
from tests.fakes.assertions import asserting_app
from tests.security.delegation.delegating import RULE, Delegating, id_of


@pytest.fixture(autouse=True)
async def connected(api: Api) -> None:
    await api.active(await api.integration(), lifetime=None)


async def stopped(api: Api, key: str, token: str, **more: str) -> int:
    answer = await api.post(f"/v1/delegations/{id_of(token)}/stop", key, {"reason": "a test", **more})
    assert answer.status_code == 200, answer.text
    return answer.json()["delegations_ended"]


async def test_attack_25_a_dead_parent_refuses_from_memory_too(api: Api, some: Delegating, admin: str):
    root = await some.token()
    child = await some.handed(root, "back")
    beside = await some.token()
    for token in (root, child, beside):
        assert (await api.lease(token)).status_code == 200
    assert await stopped(api, admin, root) == 3
    for token in (root, child):
        assert (await api.lease(token)).json()["code"] == "delegation_ended"
        assert "can't be accepted" in (await some.refused(token, "back"))[1]
    assert (await api.lease(beside)).status_code == 200
    (record,) = await api.records(AuditAction.DELEGATION_STOPPED)
    assert (record.object, record.detail["delegations_ended"]) == (id_of(root), 3)
    assert await stopped(api, admin, root) == 0


async def test_attack_25_no_call_after_the_commit_that_stops_the_parent(
    api: Api, some: Delegating, admin: str
):
    root = await some.token()
    child = await some.handed(root, "back")
    begun, ended = asyncio.Event(), asyncio.Event()
    late: list[int] = []

    async def lease() -> None:
        while True:
            after = ended.is_set()
            answer = await api.lease(child)
            begun.set()
            if after:
                late.append(answer.status_code)
                return

    async with asyncio.TaskGroup() as group:
        for _ in range(100):
            group.create_task(lease())
        await begun.wait()
        await stopped(api, admin, root)
        ended.set()
    assert late == [403] * 100


async def test_a_branch_a_session_and_who_may_stop_them(api: Api, some: Delegating, admin: str):
    root = await some.token()
    child = await some.handed(root, "back")
    other = await some.token(root)
    path = f"/v1/delegations/{id_of(root)}/stop"
    back, front = some.keys["back"], some.keys["front"]
    assert (await api.post(path, back)).json()["code"] == "not_found"
    assert (await api.post(path, await api.app_with("eve", Action.TOKEN))).json()["code"] == "not_found"
    session = {"part": "session"}
    assert (await api.post(f"/v1/delegations/{id_of(child)}/stop", back, session)).status_code == 404
    assert await stopped(api, back, child) == 1
    assert [(await api.lease(it)).status_code for it in (child, root, other)] == [403, 200, 200]
    assert await stopped(api, front, other, **session) == 3, "the root, what was handed over, and the other"
    assert [(await api.lease(it)).status_code for it in (child, root, other)] == [403, 403, 403]
    shown = (await api.get("/v1/delegations", admin, params={"session": id_of(root)})).json()["items"]
    assert {it["state"] for it in shown} == {"stopped"}


async def _disable(api: Api, some: Delegating) -> None:
    await some.put("/v1/apps/front", {"disabled": True})


async def _revoke_key(api: Api, some: Delegating) -> None:
    key = some.keys["front"][4:30]
    assert (await api.call("DELETE", f"/v1/apps/front/keys/{key}", some.admin)).is_success


async def _delete_app(api: Api, some: Delegating) -> None:
    assert (await api.call("DELETE", "/v1/apps/front", some.admin)).status_code == 204


async def _change_rule(api: Api, some: Delegating) -> None:
    await some.put("/v1/delegation-rules/staff", {**RULE, "audience": "another"})


async def _delete_rule(api: Api, some: Delegating) -> None:
    assert (await api.call("DELETE", "/v1/delegation-rules/staff", some.admin)).status_code == 204


async def _delete_issuer(api: Api, some: Delegating) -> None:
    assert (await api.call("DELETE", "/v1/issuers/staff", some.admin)).status_code == 204


async def _end_agent(api: Api, some: Delegating) -> None:
    await some.put("/v1/agents/front", {"purpose": "a test", "ends_at": "2026-12-31T00:00:00Z"})
    assert (await api.post("/v1/agents/front/stop", some.admin)).status_code == 202


@pytest.mark.parametrize(
    "end", [_disable, _revoke_key, _delete_app, _change_rule, _delete_rule, _delete_issuer, _end_agent]
)
async def test_attack_25_what_ends_the_first_app_ends_what_it_has_delegated(
    api: Api, some: Delegating, end: Callable[[Api, Delegating], Awaitable[None]]
):
    child = await some.handed(await some.token(), "back")
    assert (await api.lease(child)).status_code == 200
    await end(api, some)
    assert (await api.lease(child)).json()["code"] == "delegation_ended"
    assert (await api.lease(some.keys["back"])).status_code == 200


async def test_a_replaced_credential_ends_what_was_delegated_with_it(api: Api, some: Delegating, admin: str):
    front = await asserting_app(api, admin, "front")
    child = await some.handed(await some.token(by=await front.token()), "back")
    assert (await api.lease(child)).status_code == 200
    assert (await api.call("DELETE", "/v1/apps/front/credentials/main", admin)).status_code == 204
    assert (await api.lease(child)).json()["code"] == "delegation_ended"


FORGED = [
    "UPDATE delegation SET expires_at = '2099-01-01 00:00:00.000000'",
    "UPDATE delegation SET subject = 'user-2'",
    "UPDATE delegation SET path = '[\"{own}\"]', root_id = '{own}' WHERE id = '{own}'",
    "UPDATE delegation SET path = '[\"{own}\", \"{own}\"]' WHERE id = '{own}'",
    "UPDATE delegation SET path = '[\"{own}\", \"{parent}\"]' WHERE id = '{parent}'",
    "UPDATE delegation SET reach = '{{}}'",
    "UPDATE delegation SET app_id = (SELECT id FROM app WHERE name = 'eve')",
    "UPDATE delegation SET stopped_at = NULL, revision = 1",
    "UPDATE delegation SET mac = NULL",
    "DELETE FROM delegation WHERE id = '{parent}'",
    "UPDATE delegation_rule SET actors = '[]'",
]


async def test_a_writer_of_the_database_makes_no_authority(api: Api, some: Delegating, admin: str):
    """A cycle, a root of its own, another subject, a longer life, a stop undone: by rows alone."""
    await api.app_with("eve", Action.TOKEN)
    for forged in FORGED:
        parent = await some.token(scope="read_user")
        child = await some.token(parent)
        if "stopped_at" in forged:
            await stopped(api, admin, parent)
        assert (await api.lease(child)).is_success is ("stopped_at" not in forged)
        ids = forged.replace("{own}", id_of(child)).replace("{parent}", id_of(parent))
        async with api.worker.write() as tx:
            await tx.connection.exec_driver_sql(ids.replace("{{}}", "{}"))
        api.parts.authenticator._cache.clear()  # as in another process
        for subject in ("user-1", "user-2"):
            assert (await api.lease(child, subject=subject)).status_code in (401, 403), forged
