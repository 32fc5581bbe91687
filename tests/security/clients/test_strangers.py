"""What a stranger, who has no login, can have the authorization endpoint do."""

from sqlalchemy import func, select

from evergrant_server.core.access import Action
from evergrant_server.core.oauth.clients import ClientAuthMethod
from evergrant_server.store.people.people import PersonLoginRow
from tests.fakes.api import Api
from tests.fakes.assertions import new_key
from tests.fakes.platform.gateway_clients import authorized_client
from tests.fakes.providers.login_issuer import LoginIssuer
from tests.security.clients.agents import AgentUser, agents_allowed, registered
from tests.security.clients.test_authorize import issuer

__all__ = ["issuer"]


async def test_requests_without_a_login_fill_no_table(api: Api, issuer: LoginIssuer):
    connection, _ = await agents_allowed(api, issuer)
    stranger = AgentUser(api, issuer)
    url = stranger.url("https://never-read.example/client.json", connection, state="x" * 6000)
    for _ in range(150):
        await stranger.browser.get(url)
    async with api.store.read() as tx:
        rows = (await tx.connection.execute(select(func.count()).select_from(PersonLoginRow))).scalar_one()
    assert rows < 100


async def test_rfc9700_4_11_2_a_client_of_strangers_makes_no_open_redirector(api: Api, issuer: LoginIssuer):
    connection, _ = await agents_allowed(api, issuer)
    stranger, client = AgentUser(api, issuer), await registered(api, "https://evil.example/login")
    url = stranger.url(client, connection, redirect_uri="https://evil.example/login", response_type="bogus")
    answer = await stranger.browser.get(url)
    assert "evil.example" not in answer.headers.get("location", "")


async def test_rfc9700_2_2_2_a_bound_refresh_token_is_of_no_use_once_its_client_has_no_key(api: Api):
    """The metadata document's host says later that its client proves no key: the token doesn't rotate."""
    await api.app_with("agent", Action.PROXY)
    agent = await authorized_client(api, "agent", new_key())
    tokens = await agent.tokens()
    async with api.worker.write() as tx:
        client = await tx.oauth_clients.by_client_id(agent.client.client_id)
        assert client is not None
        bare = client.model_copy(update={"auth_method": ClientAuthMethod.NONE, "jwks": None})
        await tx.oauth_clients.replace(bare, expected=client.revision)
    agent.key = None
    assert (await agent.refresh(tokens["refresh_token"])).status_code == 400
