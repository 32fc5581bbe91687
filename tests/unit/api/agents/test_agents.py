"""Agents: apps with a sponsor and an end, after which nothing leaves."""

from datetime import timedelta
from typing import Any

import httpx2
import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.people.roles import PersonRole
from tests.fakes.api import TENANT, Api
from tests.security.people import put_session

DAY = 86_400


async def put(api: Api, key: str, name: str = "bot", /, **more: Any) -> httpx2.Response:
    ends_at = (api.clock.now() + timedelta(days=1)).isoformat()
    body = {"purpose": "answers mails", "ends_at": ends_at, **more}
    return await api.call("PUT", f"/v1/agents/{name}", key, json=body)


async def test_an_agent_leases_until_its_end_also_from_a_cache(api: Api):
    admin = await api.app_with("admin", Action.ADMIN)
    await api.active(await api.integration(), lifetime=None)
    bot = await api.app_with("bot", Action.TOKEN)
    made = await put(api, admin)
    assert (made.status_code, made.json()["sponsor"], made.json()["active"]) == (200, "app:admin", True)
    assert (await api.lease(bot)).status_code == 200
    api.clock.advance(DAY)
    for _ in range(2):
        refused = await api.lease(bot)
        assert (refused.status_code, refused.json()["code"]) == (403, "agent_ended")
    later = await put(api, admin, purpose="answers more")
    assert later.json()["purpose"] == "answers more"
    assert (await api.lease(bot)).status_code == 200
    (first, _) = await api.records(AuditAction.AGENT_PUT)
    assert (first.detail["app"], first.detail["sponsor"]) == ("bot", "app:admin")


@pytest.mark.parametrize("gone", ["disabled", "deleted"])
async def test_a_sponsor_that_is_gone_ends_its_agents_leases(api: Api, gone: str):
    admin, _ = await api.app_with("admin", Action.ADMIN), await api.app_with("team")
    _, bot = await api.active_for("bot", Action.TOKEN)
    await put(api, admin, sponsor="app:team")
    assert (await api.lease(bot)).status_code == 200
    before = (await api.app_named("bot")).revision
    method, body = ("PUT", {"disabled": True}) if gone == "disabled" else ("DELETE", {})
    assert (await api.call(method, "/v1/apps/team", admin, json=body)).is_success
    assert (await api.app_named("bot")).revision == before + 1, "what waits in a ledger is judged again"
    refused = await api.lease(bot)
    assert (refused.status_code, refused.json()["code"]) == (403, "agent_ended")
    assert "app:team" in refused.json()["detail"]
    (shown,) = (await api.get("/v1/agents", admin)).json()["items"]
    assert (shown["name"], shown["active"]) == ("bot", False)


async def test_what_an_app_put_says_makes_no_agent_a_plain_app(api: Api):
    admin = await api.app_with("admin", Action.ADMIN)
    assert (await put(api, admin)).status_code == 201
    shown = (await api.call("PUT", "/v1/apps/bot", admin, json={"lease_limit": 5})).json()
    assert (shown["sponsor"], shown["purpose"]) == ("app:admin", "answers mails")


async def test_a_person_sponsors_and_needs_a_login_of_moments_ago(api: Api):
    _, person = await put_session(api, TENANT, PersonRole.TENANT_ADMIN)
    sponsored = (await put(api, person)).json()
    assert sponsored["sponsor"].startswith("person:psn_")
    api.clock.advance(360)
    assert (await put(api, person)).json()["code"] == "step_up_required"


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("bot", {"sponsor": "app:bot"}),
        ("bot", {"sponsor": "app:other-bot"}),  # an agent
        ("bot", {"sponsor": "app:none"}),
        ("bot", {"sponsor": "team"}),
        ("bot", {"sponsor": "person:../x"}),
        ("bot", {"purpose": ""}),
        ("bot", {"ends_at": "2020-01-01T00:00:00Z"}),
        ("bot", {"ends_at": "9999-01-01T00:00:00Z"}),
        ("admin", {}),  # itself
        ("team", {}),  # sponsors one
    ],
)
async def test_bad_agents(api: Api, name: str, wrong: dict[str, Any]):
    admin, _ = await api.app_with("admin", Action.ADMIN), await api.app_with("team")
    await put(api, admin, "other-bot", sponsor="app:team")
    assert (await put(api, admin, name, **wrong)).json()["code"] == "invalid_request"


async def test_an_agents_token_ends_with_it(api: Api):
    admin = await api.app_with("admin", Action.ADMIN)
    connection, _ = await api.active_for("bot", Action.TOKEN)
    await put(api, admin)
    api.clock.advance(2 * DAY)
    explained = await api.get(f"/v1/access/explain?app=bot&connection={connection.id}", admin)
    assert "agent_ended" in {it["code"] for it in explained.json()["stopped_by"]}
    (row,) = [it for it in (await api.get("/v1/access", admin)).json()["items"] if it["app"] == "bot"]
    assert row["sponsor"] == "app:admin"
