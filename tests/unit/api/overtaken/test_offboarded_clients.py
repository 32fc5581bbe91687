"""Who leaves has no client left that acts for them, also where one was just being let in."""

from collections.abc import AsyncIterator

import httpx2
import pytest
import pytest_asyncio
from sqlalchemy import select

from evergrant_server.core.access import Action
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.oauth.families import AuthorizationCodes, RefreshTokens
from evergrant_server.store.oauth.requests import ClientConsents
from evergrant_server.store.oauth.tables import AuthorizationCodeRow
from tests.fakes.api import Api
from tests.fakes.platform.gateway_clients import authorized_client
from tests.fakes.postgresql.overtaking import overtake
from tests.fakes.providers.login_issuer import LoginIssuer
from tests.security.clients.agents import AgentUser, agents_allowed, registered


@pytest_asyncio.fixture
async def issuer(api: Api) -> AsyncIterator[LoginIssuer]:
    async with LoginIssuer(api.clock.now) as running:
        yield running


async def leaves(api: Api, admin: str, subject: str) -> httpx2.Response:
    return await api.post("/v1/offboardings", admin, {"subject": subject, "reason": "HR-7"})


async def test_a_client_that_is_just_getting_its_first_tokens(
    api: Api, admin: str, monkeypatch: pytest.MonkeyPatch
):
    await api.app_with("agent", Action.PROXY)
    agent = await authorized_client(api, "agent")
    code = await agent.code("alice")
    begun = overtake(monkeypatch, api.store, RefreshTokens, "add", lambda: leaves(api, admin, "alice"))
    tokens = await agent.exchange(code)
    assert (tokens.status_code, (await begun.result()).status_code) == (200, 202)
    assert (await begun.result()).json()["beside"]["token_families"] == 1
    (family,) = (await api.get("/v1/token-families", admin)).json()["items"]
    assert not family["live"]
    assert (await agent.refresh(tokens.json()["refresh_token"])).json()["error"] == "invalid_grant"


async def test_a_client_whose_code_is_read_when_its_person_leaves(
    api: Api, admin: str, monkeypatch: pytest.MonkeyPatch
):
    await api.app_with("agent", Action.PROXY)
    agent = await authorized_client(api, "agent")
    code = await agent.code("alice")
    begun = overtake(
        monkeypatch, api.store, AuthorizationCodes, "by_hash", lambda: leaves(api, admin, "alice")
    )
    assert (await agent.exchange(code)).is_error
    assert (await begun.result()).status_code == 202
    assert (await api.get("/v1/token-families", admin)).json()["items"] == []


async def test_a_client_that_was_allowed_before(
    api: Api, admin: str, issuer: LoginIssuer, monkeypatch: pytest.MonkeyPatch
):
    connection, _ = await agents_allowed(api, issuer)
    user = AgentUser(api, issuer)
    url = user.url(await registered(api), connection)
    await user.allow(url)
    begun = overtake(monkeypatch, api.store, ClientConsents, "get", lambda: leaves(api, admin, "user-1"))
    answer = await user.browser.get(url)
    assert (await begun.result()).status_code == 202
    shown = await user.browser.get(answer.headers["location"])
    assert shown.status_code == 403, "the session of the page has ended"
    async with api.worker.read() as tx:
        codes = await tx.connection.execute(select(table_of(AuthorizationCodeRow)))
    assert codes.all() == []
