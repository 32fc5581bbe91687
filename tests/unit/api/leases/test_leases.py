"""The lease path: fresh, due, expired, refused; what is asked of the workflow, and what is recorded."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode
from evergrant_server.store import LeaseRow
from tests.fakes.api import TENANT, Api, running_api
from tests.fakes.patience import PATIENCE_S, eventually


async def asked_once(api: Api) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not api.link.asked:
            await asyncio.sleep(0.01)


async def test_a_fresh_lease_says_what_the_token_can_do(api: Api):
    connection = await api.active(await api.integration())
    answer = await api.lease(await api.app_with("pipeline", Action.TOKEN))
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "access_token": "at-1",
        "token_type": "Bearer",
        "expires_at": "2026-01-02T04:04:05.678901+00:00",
        "scopes": ["read_user"],
        "generation": 1,
        "connection_id": connection.id,
        "grant_over": False,
        "audit": "api-test/0",
    }
    assert answer.headers["cache-control"] == "no-store"
    (record,) = await api.records(of=connection.id)
    assert (record.action, record.shard, record.seq) == (AuditAction.LEASE_ISSUED, "api-test", 0)
    async with api.worker.read() as tx:
        rows = await tx.context_rows.connection(TENANT, connection.id)
        assert rows is not None
        assert rows.leased_generation == 1


async def test_a_dead_grants_token_is_leased_as_such_until_it_is_reported(api: Api):
    connection, key = await api.active_for("pipeline", Action.TOKEN)
    await api.change(connection, lambda it: it.rejected(ErrorCode.GRANT_REJECTED, api.clock.now()))
    for _ in range(2):
        answer = await api.lease(key)
        assert (answer.status_code, answer.json()["grant_over"]) == (200, True)
    report = {"generation": 1, "reason": "unauthorized"}
    told = await api.post(f"/v1/connections/{connection.id}/refresh", key, report)
    assert (told.status_code, told.json()["code"]) == (409, ErrorCode.GRANT_REJECTED)
    refused = await api.lease(key)
    assert (refused.status_code, refused.json()["code"]) == (409, ErrorCode.CONSENT_REQUIRED)


async def test_a_grant_that_comes_while_a_lease_is_judged_asks_for_no_consent(
    api: Api, monkeypatch: pytest.MonkeyPatch
):
    waiting = await api.connection(await api.integration())
    key, load = (
        await api.app_with("pipeline", Action.TOKEN, Action.CONNECT),
        api.parts.lease_rows.load_by_names,
    )

    async def load_then_install(*names: Any) -> LeaseRow | None:
        row = await load(*names)
        await api.install(waiting, "at-1")
        return row

    monkeypatch.setattr(api.parts.lease_rows, "load_by_names", load_then_install)
    answer = await api.lease(key)
    assert (answer.status_code, answer.json()["code"]) == (503, "refresh_pending")
    monkeypatch.undo()
    assert (await api.lease(key)).status_code == 200


async def test_a_lease_by_id_with_an_empty_body(api: Api):
    connection, key = await api.active_for("pipeline", Action.TOKEN)
    for _ in range(2):
        answer = await api.call("POST", f"/v1/connections/{connection.id}/token", key)
        assert answer.json()["access_token"] == "at-1"
    assert len(await api.records(AuditAction.LEASE_ISSUED, of=connection.id)) == 2


async def test_a_due_token_is_served_now_and_refreshed_behind(api: Api):
    connection, key = await api.active_for("pipeline", Action.TOKEN)
    api.clock.advance(3500)
    gate = asyncio.Event()
    api.refreshes_with("at-2", after=gate)
    assert (await api.lease(key)).json()["access_token"] == "at-1"
    gate.set()
    await eventually(lambda: api.row(TENANT, connection.id), lambda it: it.generation == 2)
    assert (await api.lease(key)).json()["access_token"] == "at-2"
    assert len(api.link.asked) == 1


async def test_an_expired_token_waits_for_one_refresh_shared_by_all(api: Api):
    _, key = await api.active_for("pipeline", Action.TOKEN)
    api.clock.advance(3601)
    gate = asyncio.Event()
    api.refreshes_with("at-2", after=gate)
    waiting = [asyncio.create_task(api.lease(key)) for _ in range(50)]
    await asked_once(api)
    gate.set()
    answers = await asyncio.gather(*waiting)
    assert {answer.json()["access_token"] for answer in answers} == {"at-2"}
    assert len(api.link.asked) == 1


async def test_the_store_may_answer_before_the_workflow(api: Api):
    """The update hangs; another process installs the token: whichever answers first wins."""
    connection, key = await api.active_for("pipeline", Action.TOKEN)
    api.clock.advance(3601)
    never = asyncio.Event()
    api.refreshes_with("unused", after=never)
    waiting = asyncio.create_task(api.lease(key))
    await asked_once(api)
    await api.install(connection, "at-2")
    assert (await waiting).json()["access_token"] == "at-2"


async def test_min_ttl_waits_for_a_longer_lived_token(api: Api):
    _, key = await api.active_for("pipeline", Action.TOKEN)
    api.clock.advance(1800)
    api.refreshes_with("at-2")
    assert (await api.lease(key, min_ttl=600)).json()["access_token"] == "at-1"
    assert (await api.lease(key, min_ttl=2400)).json()["access_token"] == "at-2"


async def test_a_refusal_names_who_repairs_it_and_when_to_come_back(api: Api):
    connection, key = await api.active_for("pipeline", Action.TOKEN)
    api.clock.advance(3601)
    api.refreshes_fail(ErrorCode.PROVIDER_RATE_LIMITED, 17.2)
    answer = await api.lease(key)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "18"
    problem = answer.json()
    assert (problem["code"], problem["repairer"]) == ("provider_rate_limited", "time")
    assert problem["kind"] == "ProviderUnavailable"
    assert problem["retry_after"] == 17.2
    assert [it.action for it in await api.records(of=connection.id)] == [AuditAction.LEASE_REFUSED]


async def test_a_refresh_that_is_refused_for_good_leads_to_a_connect_link(api: Api):
    connection, key = await api.active_for("pipeline", Action.TOKEN, Action.CONNECT)
    api.clock.advance(3601)
    api.refreshes_are_refused(ErrorCode.GRANT_REJECTED)
    answer = await api.lease(key)
    assert (answer.status_code, answer.json()["code"]) == (409, "consent_required")
    assert answer.json()["connect_url"].startswith("https://evergrant.test/connect/")
    assert answer.json()["connection_id"] == connection.id


async def test_nothing_there_begins_a_connection_for_an_app_that_may_connect(api: Api):
    key = await api.app_for("pipeline", Action.TOKEN, Action.CONNECT)
    first, second = await api.lease(key), await api.lease(key)
    assert (first.status_code, first.json()["code"]) == (409, "consent_required")
    assert first.json()["connect_url"] == second.json()["connect_url"]
    assert first.json()["connection_id"] == second.json()["connection_id"]
    assert first.json()["expires_at"] == "2026-01-02T04:04:05.678901+00:00"
    assert api.relay.nudges >= 1
    other = await api.lease(await api.app_with("reader", Action.TOKEN), subject="user-2")
    assert (other.status_code, other.json()["code"]) == (404, "not_found"), "it may not connect"


async def test_scopes_that_were_not_granted_and_scopes_above_the_ceiling(api: Api):
    await api.active(await api.integration(), scopes=("read_user", "api"))
    wide = await api.app_with("wide", Action.TOKEN)
    narrow = await api.app_with("narrow", Action.TOKEN, ceiling=("read_user",))
    assert (await api.lease(wide, scopes=["read_user"])).status_code == 200
    missing = await api.lease(wide, scopes=["read_user", "sudo"])
    assert (missing.status_code, missing.json()["code"]) == (409, "scope_not_granted")
    assert missing.json()["scopes"] == "sudo"
    above = await api.lease(narrow, scopes=["api"])
    assert (above.status_code, above.json()["code"]) == (403, "scope_not_permitted")
    # the token itself can do more than the permit allows: it doesn't leave whatever was asked
    assert (await api.lease(narrow)).json()["code"] == "scope_not_permitted"
    assert (await api.lease(narrow, scopes=["read_user"])).json()["code"] == "scope_not_permitted"


async def test_rfc6750_3_1_a_scope_that_was_not_granted_leads_to_a_consent_for_it(api: Api):
    connection, key = await api.active_for("pipeline", Action.TOKEN, Action.CONNECT)
    assert (await api.lease(key)).status_code == 200  # the caller and the row are cached
    first, second = [await api.lease(key, scopes=["read_user", "api"]) for _ in range(2)]
    assert (first.status_code, first.json()["code"], first.json()["scopes"]) == (
        409,
        "scope_not_granted",
        "api",
    )
    assert first.json()["connect_url"] == second.json()["connect_url"]
    assert first.json()["connection_id"] == connection.id
    async with api.worker.read() as tx:
        asked = await tx.consents.open_consent(
            TENANT,
            connection.id,
            api.clock.now(),
            app_id=(await api.app_named("pipeline")).id,
            challenge=None,
        )
    assert asked is not None
    assert asked.scopes == (*connection.requested_scopes, "api")
    assert (await api.lease(key)).status_code == 200, "the grant in use is leased on"
    assert api.link.asked == [], "a refresh adds no scope"


async def test_rfc6749_6_a_narrower_grant_is_judged_anew_by_every_permit(api: Api):
    connection = await api.active(await api.integration(), scopes=("read_user", "api"))
    wide = await api.app_with("wide", Action.TOKEN)
    narrow = await api.app_with("narrow", Action.TOKEN, ceiling=("read_user",))
    assert (await api.lease(narrow)).json()["code"] == "scope_not_permitted"
    assert (await api.lease(wide, scopes=["api"])).status_code == 200
    await api.install(connection, "at-2", scopes=("read_user",))  # the refresh's reply has fewer scopes
    assert (await api.lease(narrow)).json()["access_token"] == "at-2"
    assert (await api.lease(wide, scopes=["api"])).json()["code"] == "scope_not_granted"


async def test_no_consent_is_opened_for_a_scope_above_a_ceiling_or_without_connect(api: Api):
    await api.active(await api.integration(), scopes=("read_user",))
    narrow = await api.app_with("narrow", Action.TOKEN, Action.CONNECT, ceiling=("read_user",))
    above = await api.lease(narrow, scopes=["api"])
    assert (above.status_code, above.json()["code"]) == (403, "scope_not_permitted")
    reader = await api.lease(await api.app_with("reader", Action.TOKEN), scopes=["api"])
    assert (reader.status_code, reader.json()["code"]) == (409, "scope_not_granted")
    assert not any("connect_url" in answer.json() for answer in (above, reader))
    assert await api.records(AuditAction.REAUTHORIZATION_REQUESTED) == []


async def test_one_who_waits_gets_a_typed_answer_when_time_is_up(tmp_path: Path):
    async with running_api(tmp_path, lease_wait=0.5) as api:
        _, key = await api.active_for("pipeline", Action.TOKEN)
        api.clock.advance(3601)
        api.refreshes_with("unused", after=asyncio.Event())
        began = asyncio.get_running_loop().time()
        answer = await api.lease(key)
        assert (answer.status_code, answer.json()["code"]) == (503, "refresh_pending")
        assert asyncio.get_running_loop().time() - began > 0.4


async def test_a_refresh_says_whether_its_caller_waits(api: Api):
    _, key = await api.active_for("pipeline", Action.TOKEN)
    assert (await api.lease(key)).status_code == 200  # which begins the tree of the ledger's shard
    api.refreshes_with("at-2", "at-3")
    api.clock.advance(3590)
    assert (await api.lease(key)).json()["access_token"] == "at-1"
    await asyncio.gather(*api.app.state.refresher._running.values())
    api.clock.advance(3601)
    assert (await api.lease(key)).json()["access_token"] == "at-3"
    assert [it.ahead for it in api.link.asked] == [True, False]
