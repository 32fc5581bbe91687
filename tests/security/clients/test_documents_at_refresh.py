"""A metadata document is read again at the token endpoint: what it says no more refreshes nothing."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import update

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.integrations import ClientDocumentResult, ReadClientDocument
from evergrant_server.core.oauth.clients import GatewayClient
from evergrant_server.store.oauth.tables import OAuthClientRow
from tests.fakes.api import TENANT, Api
from tests.fakes.assertions import new_key, public_set
from tests.fakes.platform.gateway_clients import REDIRECT_URI, AuthorizedClient
from tests.security.clients.document_host import DocumentHost, document_host

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
ORDER = {"tenant": TENANT, "context": RequestContext(by="subject")}


@pytest_asyncio.fixture
async def host(api: Api, tmp_path: Path) -> AsyncIterator[DocumentHost]:
    async with document_host(api, tmp_path) as host:
        yield host


@pytest_asyncio.fixture
async def agent(api: Api, host: DocumentHost) -> AuthorizedClient:
    """A client with a key, whose document has been read."""
    key = new_key()
    host.document |= {"redirect_uris": [REDIRECT_URI], "token_endpoint_auth_method": "private_key_jwt"}
    host.document["jwks"] = public_set(key)
    await api.app_with("agents", Action.PROXY)
    await host.worker.read_document(ReadClientDocument(client_id=host.url, **ORDER))
    return AuthorizedClient(api, await row_of(api, host), "agents", key)


async def row_of(api: Api, host: DocumentHost) -> GatewayClient:
    async with api.store.read() as tx:
        client = await tx.oauth_clients.by_client_id(host.url)
    assert client is not None
    return client


async def error_of(agent: AuthorizedClient, tokens: dict[str, Any]) -> str:
    """The error of a refresh; empty for one that gets tokens."""
    answer = await agent.refresh(tokens["refresh_token"])
    return "" if answer.status_code == 200 else str(answer.json()["error"])


async def test_a_key_that_was_removed_from_the_document_refreshes_nothing(
    api: Api, host: DocumentHost, agent: AuthorizedClient
):
    tokens, code = await agent.tokens(), await agent.code(expires_at=api.clock.now() + timedelta(days=2))
    api.clock.advance(HOUR - 1)
    assert (await error_of(agent, tokens), len(host.asked)) == ("", 1), "as long as its headers say"
    new = new_key()
    host.document["jwks"] = public_set(new)
    api.clock.advance(1)
    assert (await agent.exchange(code)).json()["error"] == "invalid_client"
    assert (await error_of(agent, tokens), len(host.asked)) == ("invalid_client", 2)
    agent.key = new
    assert await error_of(agent, tokens) == "", "the authorization is the client's, not the key's"


@pytest.mark.parametrize("bent", [{"jwks": {"keys": []}}, {"redirect_uris": []}, {"client_secret": "x"}])
async def test_a_document_that_its_host_has_made_unusable_ends_refreshes_at_once(
    api: Api, host: DocumentHost, agent: AuthorizedClient, bent: dict[str, Any]
):
    tokens = await agent.tokens()
    host.document |= bent
    api.clock.advance(HOUR)
    assert await error_of(agent, tokens) == "invalid_client"
    host.status = 503
    assert await error_of(agent, tokens) == "invalid_client", "and no failure afterwards revives it"
    *_, record = await api.records(AuditAction.OAUTH_CLIENT_PUT)
    assert "can't be used" in record.detail["refused"]


@pytest.mark.parametrize("how", ["status", "gone", "page", "another", "refused", "temporal"])
async def test_a_site_that_fails_in_passing_ends_no_session_and_one_that_stays_away_a_day_does(
    api: Api, host: DocumentHost, agent: AuthorizedClient, how: str
):
    tokens, good = await agent.tokens(), host.document

    async def unreachable(request: ReadClientDocument, timeout: float) -> ClientDocumentResult:
        if how == "temporal":
            raise Failure(ErrorCode.TEMPORAL_UNAVAILABLE)
        return ClientDocumentResult(failure=ErrorCode.CLIENT_UNKNOWN, detail="It can't be reached.")

    host.status = {"status": 503, "gone": 404}.get(how, 200)
    host.body = b"<html>" if how == "page" else b""
    if how == "another":
        host.document = {"error": "maintenance"}
    if how in ("refused", "temporal"):
        api.link.read_client_document = unreachable
    api.clock.advance(HOUR + DAY - 1)
    assert await error_of(agent, tokens) == ""
    api.clock.advance(1)
    assert await error_of(agent, tokens) == "invalid_client"
    host.status, host.body, host.document = 200, b"", good
    api.link.read_client_document = host.read
    assert await error_of(agent, tokens) == "", "it goes on once the document is back"


async def test_a_refresh_does_not_wait_for_a_worker_that_does_not_answer(
    api: Api, host: DocumentHost, agent: AuthorizedClient, monkeypatch: pytest.MonkeyPatch
):
    async def silent(request: ReadClientDocument, timeout: float) -> ClientDocumentResult:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    monkeypatch.setattr("evergrant_server.api.oauth.gateway_client.READ_TIMEOUT_S", 0.05)
    api.link.read_client_document = silent
    tokens = await agent.tokens()
    api.clock.advance(HOUR)
    assert await error_of(agent, tokens) == ""


async def test_a_document_is_read_for_who_holds_a_token_of_its_client_alone(
    api: Api, host: DocumentHost, agent: AuthorizedClient
):
    """Else a stranger would have Evergrant call hosts."""
    tokens = await agent.tokens()
    api.clock.advance(HOUR)
    stranger = AuthorizedClient(api, agent.client, "agents", new_key())
    wrong = tokens["refresh_token"][:-10] + "0" * 10
    for text in ("x", wrong, tokens["access_token"]):
        assert (await stranger.refresh(text)).json()["error"] == "invalid_grant"
    assert (await stranger.exchange("x" * 43)).json()["error"] == "invalid_grant"
    assert len(host.asked) == 1
    assert (await stranger.refresh(tokens["refresh_token"])).json()["error"] == "invalid_client"
    assert len(host.asked) == 2


async def test_a_client_that_an_admin_switched_off_stays_off_whatever_its_document_says(
    api: Api, host: DocumentHost, agent: AuthorizedClient
):
    tokens, admin = await agent.tokens(), await api.app_with("boss", Action.ADMIN)
    path = f"/v1/oauth-clients/{agent.client.id}"
    assert (await api.call("PUT", path, admin, json={"disabled": True})).status_code == 200
    api.clock.advance(HOUR)
    assert (await error_of(agent, tokens), len(host.asked)) == ("unauthorized_client", 1)
    await host.worker.read_document(ReadClientDocument(client_id=host.url, **ORDER))
    assert (await row_of(api, host)).disabled
    assert await error_of(agent, tokens) == "unauthorized_client"


async def test_tokens_of_a_deleted_client_stay_dead_when_its_document_is_read_again(
    api: Api, host: DocumentHost, agent: AuthorizedClient
):
    tokens, admin = await agent.tokens(), await api.app_with("boss", Action.ADMIN)
    api.clock.advance(3 * MINUTE)  # more than the clocks of two hosts may differ by
    assert (await api.call("DELETE", f"/v1/oauth-clients/{agent.client.id}", admin)).status_code == 204
    assert await error_of(agent, tokens) == "invalid_client"
    await host.worker.read_document(ReadClientDocument(client_id=host.url, **ORDER))
    assert await error_of(agent, tokens) == "invalid_grant"
    assert await error_of(agent, await agent.tokens()) == ""


async def test_a_worker_whose_clock_is_ahead_makes_no_new_client_an_older_ones(agent: AuthorizedClient):
    before = agent.client.created_at - timedelta(minutes=1)
    assert (await agent.exchange(await agent.code(created_at=before))).status_code == 200


async def test_how_long_a_document_counts_is_nothing_that_the_database_decides(
    api: Api, host: DocumentHost, agent: AuthorizedClient
):
    tokens = await agent.tokens()
    async with api.worker.write() as tx:
        later = api.clock.now() + timedelta(days=365)
        await tx.connection.execute(update(OAuthClientRow).values(fresh_until=later))
    assert (await agent.refresh(tokens["refresh_token"])).json()["code"] == "authority_broken"
