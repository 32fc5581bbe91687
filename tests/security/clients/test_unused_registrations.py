"""A registration fills no table and locks no one out: its client id carries it until a person lets it in."""

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from sqlalchemy import func, select

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.oauth.clients import known_id
from evergrant_server.store.database.columns import METADATA
from tests.fakes.api import Api, running_api
from tests.fakes.assertions import new_key, public_set
from tests.fakes.platform.gateway_clients import VERIFIER, AuthorizedClient, challenge_of
from tests.fakes.providers.login_issuer import LoginIssuer
from tests.security.clients.agents import (
    LOOPBACK,
    REDIRECT,
    AgentUser,
    agents_allowed,
    code_row,
    registered,
)

DAY = 86400.0


@pytest_asyncio.fixture
async def issuer(api: Api) -> AsyncIterator[LoginIssuer]:
    async with LoginIssuer(api.clock.now) as issuer:
        yield issuer


async def rows(api: Api) -> dict[str, int]:
    """How many rows each table has, but for those in which an app's own calls are noted later."""
    tables = [it for it in METADATA.sorted_tables if it.name not in ("app_key_use", "permit_use")]
    async with api.store.read() as tx:
        counts = [select(func.count()).select_from(it) for it in tables]
        found = [(await tx.connection.execute(it)).scalar_one() for it in counts]
    return dict(zip((it.name for it in tables), found, strict=True))


async def test_a_registration_writes_no_row_until_a_person_lets_it_in(api: Api, issuer: LoginIssuer):
    connection, _ = await agents_allowed(api, issuer)
    before = await rows(api)
    client, *_ = [await registered(api, LOOPBACK, client_name=f"Coder {it}") for it in range(20)]
    assert await rows(api) == before
    user = AgentUser(api, issuer)
    url = user.url(client, connection, redirect_uri=LOOPBACK)
    await user.ask(url)
    await user.decide(await user.ask(url), "deny")
    assert (await rows(api))["oauth_client"] == 0
    back = await user.allow(url)
    code = await code_row(api, back["code"])
    assert code is not None
    assert (code.client_id, (await rows(api))["oauth_client"]) == (known_id(client), 1)
    (record,) = await api.records(AuditAction.OAUTH_CLIENT_PUT)
    assert (record.object, record.detail["name"]) == (code.client_id, "Coder 0")
    log = str(await api.records())
    assert client not in log, "which has its short name alone"


async def test_a_client_that_was_let_in_goes_on_with_the_id_that_it_got(api: Api, issuer: LoginIssuer):
    """From the page to the token endpoint, with a key too, long after a registration alone would be over."""
    connection, _ = await agents_allowed(api, issuer)
    key, user = new_key(), AgentUser(api, issuer)
    signing = {"token_endpoint_auth_method": "private_key_jwt", "jwks": public_set(key)}
    for more in ({}, signing):
        client = await registered(api, LOOPBACK, **more)
        url = user.url(client, connection, redirect_uri=LOOPBACK, code_challenge=challenge_of(VERIFIER))
        code = (await user.allow(url))["code"]
        async with api.store.read() as tx:
            row = await tx.oauth_clients.by_client_id(known_id(client))
        assert row is not None
        presented = row.model_copy(update={"client_id": client})
        agent = AuthorizedClient(api, presented, "agents", key if more else None)
        tokens = (await agent.exchange(code, redirect_uri=LOOPBACK)).json()
        api.clock.advance(7 * DAY)
        answer = await agent.refresh(tokens["refresh_token"])
        assert (answer.status_code, answer.json().get("token_type")) == (200, "Bearer"), answer.text
        other = AuthorizedClient(api, presented, "agents", new_key())
        assert not more or (await other.refresh(tokens["refresh_token"])).status_code == 401


async def test_an_id_that_was_altered_or_is_old_or_anothers_is_an_unknown_client(
    api: Api, issuer: LoginIssuer
):
    connection, _ = await agents_allowed(api, issuer)
    user, client = AgentUser(api, issuer), await registered(api)
    other = await registered(api, "https://evil.example/cb")
    id, _, sealed = client.partition(".")
    raw = bytearray(base64.urlsafe_b64decode(sealed + "=" * (-len(sealed) % 4)))
    raw[-1] ^= 1
    altered = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    for bent in (id, f"{id}.", f"{id}.{altered}", f"{known_id(other)}.{sealed}", f"{client}A", sealed):
        answer = await user.browser.get(user.url(bent, connection))
        assert (answer.status_code, "client_unknown" in answer.text) == (400, True), bent
    url = user.url(client, connection, redirect_uri="https://evil.example/cb")
    assert "client_unknown" in (await user.browser.get(url)).text, "its redirect URIs are its own alone"
    assert (await user.browser.get(user.url(client, connection))).status_code == 303
    api.clock.advance(DAY)
    answer = await user.browser.get(user.url(client, connection))
    assert (answer.status_code, "add the server to it again" in answer.text) == (400, True)


async def test_a_flood_of_registrations_locks_no_other_address_out(tmp_path: Path):
    async with (
        running_api(tmp_path, trusted_proxies=("127.0.0.0/8",)) as api,
        LoginIssuer(api.clock.now) as issuer,
    ):
        await agents_allowed(api, issuer)

        async def register(address: str) -> int:
            body, headers = {"redirect_uris": [REDIRECT]}, {"X-Forwarded-For": address}
            return (await api.client.post("/oauth/register", json=body, headers=headers)).status_code

        many = await asyncio.gather(*(register("203.0.113.7") for _ in range(40)))
        assert 429 in many, "of one address"
        flood = [f"198.51.{net}.{host}" for net in range(2) for host in range(200)]
        assert set(await asyncio.gather(*map(register, flood))) == {201}
        assert await register("192.0.2.1") == 201


async def test_what_no_client_id_can_carry_is_refused_by_name(api: Api, issuer: LoginIssuer):
    await agents_allowed(api, issuer)
    uris = [f"https://agent.example/{new_key().as_dict()['x']}{'x' * it}" for it in range(20)]
    assert await registered(api, *uris), "as many as a client may have"
    long = [f"https://agent.example/{secrets.token_hex(200)}" for _ in range(20)]
    body = {"redirect_uris": long}
    refused = await api.post("/oauth/register", None, body)
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_client_metadata")
    assert "redirect URIs" in refused.json()["error_description"]


async def test_a_person_is_asked_again_about_a_client_that_an_admin_deleted(api: Api, issuer: LoginIssuer):
    connection, admin = await agents_allowed(api, issuer)
    client, user = await registered(api), AgentUser(api, issuer)
    await user.allow(user.url(client, connection))
    path = f"/v1/oauth-clients/{known_id(client)}"
    assert (await api.call("DELETE", path, admin)).status_code == 204
    shown = await user.ask(user.url(client, connection))
    assert (shown.status_code, "Allow" in shown.text) == (200, True)


async def test_families_are_found_by_the_id_that_a_client_presents(api: Api, issuer: LoginIssuer):
    connection, admin = await agents_allowed(api, issuer)
    client, user = await registered(api, LOOPBACK), AgentUser(api, issuer)
    url = user.url(client, connection, redirect_uri=LOOPBACK, code_challenge=challenge_of(VERIFIER))
    code = (await user.allow(url))["code"]
    form = {"grant_type": "authorization_code", "code": code, "code_verifier": VERIFIER}
    form |= {"client_id": client, "redirect_uri": LOOPBACK}
    assert (await api.client.post("/oauth/token", data=form)).status_code == 200
    for id in (client, known_id(client)):
        listed = await api.client.get(
            "/v1/token-families", params={"client_id": id}, headers={"Authorization": f"Bearer {admin}"}
        )
        assert len(listed.json()["items"]) == 1
    ended = await api.post("/v1/token-families/end", admin, {"client_id": client})
    assert ended.json()["families"] == 1
