"""Two commands of which each alone may come: where both come at once, the second sees the first."""

import httpx2
import pytest

from evergrant_server.store.integrations.definitions import Definitions
from tests.fakes.api import Api
from tests.fakes.postgresql.overtaking import overtake

PROVIDERS = "/v1/providers"
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
