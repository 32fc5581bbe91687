"""`POST /v1/access/simulate`: who would lose access, by the leases that the ledger recorded."""

from typing import Any

import pytest

from evergrant_server.core.access import Action
from tests.fakes.api import Api

PATH = "/v1/access/simulate"


async def test_of_the_leased_connections_those_that_a_change_would_refuse(api: Api):
    admin = await api.app_with("admin", Action.ADMIN)
    integration = await api.integration()
    for subject in ("alice", "bob", "never-leased"):
        scopes = ("read_user", "api") if subject == "bob" else ("read_user",)
        await api.active(integration, subject=subject, scopes=scopes, lifetime=None)
    sync = await api.app_with("sync", Action.TOKEN)
    for subject in ("alice", "bob"):
        assert (await api.lease(sync, subject=subject)).status_code == 200
    await api.lease(sync, subject="alice")  # its batch writes what the ones before were

    async def simulated(**permits: object) -> dict[str, Any]:
        answer = await api.post(PATH, admin, {"app": "sync", "permits": permits})
        assert answer.status_code == 200, answer.text
        return answer.json()

    narrow = {"integration": "crm", "actions": ["token"], "scope_ceiling": ["read_user"]}
    found = await simulated(only=narrow)
    (lost,) = found["would_lose"]
    assert (found["judged"], found["complete"], found["lost"]) == (2, True, 1)
    assert (lost["subject"], lost["reason"], lost["permit"]) == ("bob", "scope_above_ceiling", "only")
    assert (await simulated(only=None))["lost"] == 2
    assert (await simulated(only=None, other={**narrow, "scope_ceiling": None}))["lost"] == 0
    assert (await simulated(no={"effect": "deny", "integration": "crm", "actions": ["token"]}))["lost"] == 2
    elsewhere = {**narrow, "scope_ceiling": None, "sources": ["192.0.2.0/24"]}
    assert (await simulated(only=elsewhere))["lost"] == 2, "no address is recorded"
    assert (await api.lease(sync, subject="bob")).status_code == 200, "nothing is changed"
    api.clock.advance(31 * 86_400)
    assert (await simulated(only=None))["judged"] == 0
    assert (await api.post(PATH, sync, {"app": "sync", "permits": {"only": None}})).status_code == 403


async def test_single_leases_are_counted_so_many_and_no_more(api: Api, monkeypatch: pytest.MonkeyPatch):
    admin = await api.app_with("admin", Action.ADMIN)
    integration = await api.integration()
    for subject in ("alice", "bob"):
        await api.active(integration, subject=subject, lifetime=None)
    sync, other = await api.app_with("sync", Action.TOKEN), await api.app_with("other", Action.TOKEN)
    for key, subject in ((sync, "bob"), (sync, "alice"), (other, "alice"), (sync, "alice")):
        assert (await api.lease(key, subject=subject)).status_code == 200
        api.clock.advance(60)

    async def uses(**permits: object) -> dict[str, Any]:
        answer = await api.post(PATH, admin, {"app": "sync", "permits": permits})
        assert answer.status_code == 200, answer.text
        return answer.json()["uses"]

    alone = {"integration": "crm", "actions": ["token"], "subjects": ["bob"]}
    counted = await uses(only=alone)
    assert (counted["judged"], counted["complete"], counted["lost"]) == (3, True, 2)
    (group,) = counted["would_lose"]
    assert (group["subject"], group["action"], group["request"], group["uses"]) == ("alice", "token", None, 2)
    for limits, expected in (
        ({"_MOST_READ": 1}, (1, False)),
        ({"_MOST_READ_OF_ONE": 1}, (2, False)),
        ({"_MOST_READ_CONNECTIONS": 1}, (2, False)),
        ({"_MOST_READ": 4}, (3, True)),
    ):
        with monkeypatch.context() as patched:
            for name, most in limits.items():
                patched.setattr(f"evergrant_server.api.apps.simulation.{name}", most)
            counted = await uses(only=None)
        assert (counted["judged"], counted["complete"]) == expected, limits


async def test_a_change_says_in_words_what_it_reaches(api: Api):
    admin = await api.app_with("admin", Action.ADMIN)
    connection = await api.active(await api.integration())
    await api.app_with("sync", Action.TOKEN)
    body = {"integration": "crm", "actions": ["token"]}
    changes = {"only": None, "next": body, "never-was": None}
    answer = (await api.post(PATH, admin, {"app": "sync", "permits": changes})).json()
    removed, made = answer["permits"]
    assert (removed["permit"], removed["words"]) == ("only", None)
    assert removed["words_before"] == "May get access tokens of every integration, for every subject."
    assert (made["words"], made["words_before"]) == ("May get access tokens of crm, for every subject.", None)
    assert (made["live_connections"], [covered["id"] for covered in made["covered"]]) == (1, [connection.id])
