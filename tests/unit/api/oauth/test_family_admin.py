"""An admin lists what subjects have authorized clients for, and ends it with counts."""

from typing import Any

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from tests.fakes.api import Api
from tests.fakes.platform.gateway_clients import AuthorizedClient, authorized_client

FAMILIES = "/v1/token-families"


async def clients(api: Api) -> tuple[AuthorizedClient, AuthorizedClient]:
    """Two clients, each of an app of its own."""
    for name in ("agent", "other"):
        await api.app_with(name, Action.PROXY)
    return await authorized_client(api, "agent"), await authorized_client(api, "other")


async def listed(api: Api, admin: str, query: str = "") -> list[dict[str, Any]]:
    answer = await api.get(f"{FAMILIES}{query}", admin)
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]


async def test_families_are_listed_by_app_client_and_subject_without_a_token(api: Api, admin: str):
    agent, other = await clients(api)
    tokens = await agent.tokens("alice")
    newest = (await agent.refresh(tokens["refresh_token"])).json()
    await agent.refresh(tokens["refresh_token"])
    await other.tokens("bob")
    (mine,) = await listed(api, admin, "?app=agent")
    assert (mine["subject"], mine["app"], mine["live"], mine["replays"]) == ("alice", "agent", True, 1)
    assert [it["subject"] for it in await listed(api, admin, f"?client_id={other.client.client_id}")] == [
        "bob"
    ]
    assert await listed(api, admin, "?subject=alice&app=other") == []
    assert await listed(api, admin, "?app=unknown") == []
    assert (await api.post(f"{FAMILIES}/end", admin, {"app": "unknown"})).status_code == 404
    shown = str(await listed(api, admin))
    assert not any(it in shown for it in (newest["access_token"], newest["refresh_token"]))


async def test_an_admin_ends_one_family_or_all_of_a_subject(api: Api, admin: str):
    agent, other = await clients(api)
    one, two, bobs = await agent.tokens(), await agent.tokens(), await other.tokens("bob")
    await agent.refresh(two["refresh_token"])
    (first, _) = await listed(api, admin, "?app=agent")
    ended = await api.call("DELETE", f"{FAMILIES}/{first['id']}", admin)
    assert ended.json()["families"] == 1
    again = await api.call("DELETE", f"{FAMILIES}/{first['id']}", admin)
    assert (again.status_code, again.json()) == (200, {"families": 0, "access_tokens": 0})
    rest = await api.post(f"{FAMILIES}/end", admin, {"subject": "alice"})
    counts = [ended.json(), rest.json()]
    assert [it["families"] for it in counts] == [1, 1]
    assert sum(it["access_tokens"] for it in counts) == 3
    for tokens in (one, two):
        assert (await agent.refresh(tokens["refresh_token"])).json()["error"] == "invalid_grant"
    assert (await other.refresh(bobs["refresh_token"])).status_code == 200
    assert (await api.post(f"{FAMILIES}/end", admin, {})).status_code == 400
    records = await api.records(AuditAction.TOKEN_FAMILY_ENDED)
    assert [(it.detail["reason"], it.context.by) for it in records] == [("ended", "app:admin")] * 2
    assert {it["end"] for it in await listed(api, admin, "?app=agent")} == {"ended"}
