"""Two commands of which each alone may come: where both come at once, the second sees the first."""

from datetime import timedelta
from typing import Any

import httpx2
import pytest

from evergrant_server.store.access import Access
from evergrant_server.store.agents.agents import Agents
from evergrant_server.store.decisions import AccessRequests
from evergrant_server.store.integrations.definitions import Definitions
from tests.fakes.api import Api
from tests.fakes.postgresql.overtaking import overtake

REQUESTS, PROVIDERS = "/v1/access-requests", "/v1/providers"
ASKED: dict[str, Any] = {"permit": {"integration": "crm", "actions": ["token"]}, "reason": "the nightly sync"}
ACME = {
    "name": "acme-crm",
    "display_name": "Acme CRM",
    "auth_modes": ["authorization_code"],
    "authorization_endpoint": "https://acme.example/authorize",
    "token_endpoint": "https://acme.example/token",
}


async def test_of_versions_that_are_proposed_at_once_one_is_under_way(
    api: Api, admin: str, monkeypatch: pytest.MonkeyPatch
):
    async def propose() -> httpx2.Response:
        return await api.post(PROVIDERS, admin, {"definition": ACME})

    second = overtake(monkeypatch, api.store, Definitions, "open_version", propose)
    first = await propose()
    assert (first.status_code, (await second.result()).status_code) == (409, 201)
    (version,) = (await api.get(f"{PROVIDERS}/acme-crm/versions", admin)).json()["items"]
    assert version["version"] == 1


@pytest.mark.parametrize("is_new", [False, True])
async def test_no_agent_is_the_sponsor_of_another(
    api: Api, admin: str, is_new: bool, monkeypatch: pytest.MonkeyPatch
):
    for name in ("second", "third", *([] if is_new else ["first"])):
        await api.app_with(name)
    ends_at = (api.clock.now() + timedelta(days=1)).isoformat()

    async def put(name: str, sponsor: str) -> httpx2.Response:
        body = {"purpose": "mails", "ends_at": ends_at, "sponsor": f"app:{sponsor}"}
        return await api.call("PUT", f"/v1/agents/{name}", admin, json=body)

    checked = (Access, "put_app") if is_new else (Agents, "sponsored_by")
    sponsor = "third" if is_new else "first"
    second = overtake(monkeypatch, api.store, *checked, lambda: put("second", sponsor))
    made, refused = await put("first", "second"), await second.result()
    assert (made.is_success, refused.status_code) == (True, 400), (made.text, refused.text)


async def test_the_same_request_twice_at_once_is_one(api: Api, monkeypatch: pytest.MonkeyPatch):
    sync = await api.app_for("sync")
    second = overtake(
        monkeypatch, api.store, AccessRequests, "waiting", lambda: api.post(REQUESTS, sync, ASKED)
    )
    first = await api.post(REQUESTS, sync, ASKED)
    same = await second.result()
    assert (first.status_code, same.status_code) == (201, 200)
    assert first.json() == same.json()


async def test_the_last_of_twenty_requests_is_one(api: Api, monkeypatch: pytest.MonkeyPatch):
    sync = await api.app_for("sync")
    for hours in range(1, 20):
        assert (await api.post(REQUESTS, sync, {**ASKED, "lifetime": hours * 3600})).status_code == 201
    second = overtake(
        monkeypatch, api.store, AccessRequests, "waiting", lambda: api.post(REQUESTS, sync, ASKED)
    )
    first = await api.post(REQUESTS, sync, {**ASKED, "lifetime": 86_400})
    assert (first.status_code, (await second.result()).status_code) == (201, 409)
