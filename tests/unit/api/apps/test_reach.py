"""`GET /v1/apps/{name}/reach`: what one app can reach, in plain words, with the connections it covers."""

from datetime import timedelta
from typing import Any

import pytest

from evergrant_server.core.access import Action
from evergrant_server.policy import PermitQuestion, Target
from evergrant_server.policy.decision import failing_field
from evergrant_server.policy.question import PermitField
from tests.fakes.api import OTHER, TENANT, Api

PERMITS: dict[str, tuple[dict[str, Any], str]] = {
    "all": ({"actions": ["token"]}, "May get access tokens of every integration, for every subject."),
    "calls": (
        {"actions": ["proxy"], "integration": "crm", "methods": ["GET", "HEAD"], "paths": ["/user/**"]},
        "May send GET and HEAD requests to /user/** of crm, for every subject.",
    ),
    "pays": (
        {"actions": ["proxy"], "integration": "crm", "methods": ["POST"], "subjects": ["user-1", "t-*"]}
        | {"call_approval": True},
        "May send POST requests to the API of crm, for user-1 and those that begin with t-, once a person "
        "has approved that very call.",
    ),
    "tools": (
        {"actions": ["proxy"], "provider": "gitlab", "tools": ["search", "greet"]},
        "May call the tools search and greet of every integration with the provider gitlab, for every "
        "subject.",
    ),
    "many": (
        {
            "actions": ["connect", "admin"],
            "connections": ["con_" + "0" * 22],
            "scope_ceiling": list("abcdefghij"),
        },
        "May ask for consents and change the configuration of every integration, on 1 named connection "
        "alone, for every subject, with no more than a, b, c, d, e, f, g, h and 2 more.",
    ),
    "not": (
        {"actions": ["token"], "effect": "deny", "scopes": ["write"], "mode": "enforce"},
        "May not get access tokens of any integration, for any subject, if it is about write.",
    ),
    "perhaps": (
        {"actions": ["token"], "effect": "deny", "mode": "observe", "sources": ["10.0.0.0/8"]},
        "Would not be allowed to get access tokens of any integration, for any subject, from 10.0.0.0/8.",
    ),
}


@pytest.mark.parametrize("name", PERMITS)
async def test_a_permit_is_a_plain_sentence(api: Api, admin: str, name: str):
    await api.app_with("bot")
    body, words = PERMITS[name]
    put = await api.call("PUT", f"/v1/apps/bot/permits/{name}", admin, json={"integration": "*", **body})
    assert put.is_success, put.text
    (found,) = (await api.get("/v1/apps/bot/reach", admin)).json()["items"]
    assert (found["permit"], found["words"]) == (name, words)


async def test_it_names_what_is_covered_when_it_was_used_and_what_stops_the_app(api: Api, admin: str):
    crm, erp = await api.integration(), await api.integration("erp")
    mine = [await api.active(crm, subject=f"user-{n:02}") for n in range(12)]
    await api.active(erp)
    await api.active(await api.integration("crm", tenant=OTHER))
    key = await api.app_with("bot", Action.TOKEN, integration="crm")
    await api.app_with("another", Action.TOKEN)
    leased = await api.post("/v1/lease", key, {"integration": "crm", "subject": "user-03"})
    assert leased.status_code == 200
    (found,) = (await api.get("/v1/apps/bot/reach", admin)).json()["items"]
    assert (found["live_connections"], found["stopped_by"]) == (12, None)
    assert [it["id"] for it in found["covered"]] == [it.id for it in mine[:10]]
    assert found["covered"][0] == {
        "id": mine[0].id,
        "integration": "crm",
        "provider": "gitlab",
        "subject": "user-00",
        "state": "active",
    }
    assert found["last_used_at"] is not None
    agent = {"purpose": "refunds", "ends_at": (api.clock.now() + timedelta(minutes=5)).isoformat()}
    assert (await api.call("PUT", "/v1/agents/bot", admin, json=agent)).is_success
    api.clock.advance(301)
    (found,) = (await api.get("/v1/apps/bot/reach", admin)).json()["items"]
    assert (found["stopped_by"], found["sponsor"]) == ("agent_ended", "app:admin")
    for query, items in (("?limit=1", 1), ("", 1)):
        page = (await api.get(f"/v1/apps/bot/reach{query}", admin)).json()
        assert (len(page["items"]), page["next_cursor"]) == (items, None)
    assert (await api.get("/v1/apps/none/reach", admin)).status_code == 404
    assert (await api.get("/v1/apps/bot/reach", key)).status_code == 403


async def test_what_it_covers_is_what_decisions_count_as_covered(api: Api, admin: str):
    """The store counts connections by a query: as many as policy would, one by one."""
    crm, erp = await api.integration(), await api.integration("erp", provider="auth0")
    subjects = ("user-1", "user-10", "USER-1", "t-1", "t", "t%", "ü-1")
    connections = [await api.active(place, subject=name) for place in (crm, erp) for name in subjects]
    await api.app_with("bot")
    bodies: list[dict[str, Any]] = [
        {"integration": place, "provider": provider, "subjects": names, "connections": ids}
        for place in ("*", "crm")
        for provider in ("*", "auth0")
        for names in (["*"], ["user-1"], ["user-1*"], ["t%*", "t-*"], ["ü*", "t"])
        for ids in (None, [connections[0].id, connections[-1].id])
    ]
    for body in bodies:
        put = await api.call("PUT", "/v1/apps/bot/permits/one", admin, json={"actions": ["token"], **body})
        assert put.is_success, put.text
        (shown,) = (await api.get("/v1/apps/bot/reach", admin)).json()["items"]
        async with api.worker.read() as tx:
            permit = await tx.access.permit(TENANT, (await api.app_named("bot")).id, "one")
        assert permit is not None
        place = (PermitField.INTEGRATION, PermitField.PROVIDER, PermitField.SUBJECT, PermitField.CONNECTION)
        covered = {
            connection.id
            for connection in connections
            if failing_field(permit, PermitQuestion(Target.of(connection), Action.TOKEN, api.clock.now()))
            not in place
        }
        assert shown["live_connections"] == len(covered), body
        assert {it["id"] for it in shown["covered"]} <= covered, body
