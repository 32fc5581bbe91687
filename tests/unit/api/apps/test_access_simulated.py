"""`POST /v1/access/simulate`: who would lose access, by the leases that the ledger recorded."""

from typing import Any

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
