"""Tokens of the gateways' clients: a code begins a family, which is refreshed, replayed and revoked."""

import asyncio
import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from evergrant_server.access.authentication import read_token
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import new_id
from evergrant_server.core.oauth.authorizations import FamilyEnd
from evergrant_server.core.oauth.client_login import ClientLogin
from tests.fakes.api import TENANT, Api, running_api
from tests.fakes.assertions import new_key
from tests.fakes.platform.gateway_clients import AuthorizedClient, authorized_client
from tests.fakes.rows import disable_tenant

BEGUN, REFRESHED = AuditAction.TOKEN_FAMILY_BEGUN, AuditAction.TOKEN_FAMILY_REFRESHED
REPLAYED, ENDED = AuditAction.TOKEN_FAMILY_REPLAYED, AuditAction.TOKEN_FAMILY_ENDED
HOUR, MINUTE = 3600.0, 60.0


@pytest.fixture
async def agent(api: Api) -> AuthorizedClient:
    await api.app_with("agent", Action.PROXY)
    return await authorized_client(api, "agent")


async def counts(agent: AuthorizedClient, token: str) -> bool:
    """Whether an access token is accepted at its resource."""
    async with agent.api.store.read() as tx:
        try:
            await read_token(tx, agent.resource, token, agent.api.clock.now())
        except Failure:
            return False
    return True


async def test_rfc6749_4_1_3_a_code_buys_the_tokens_of_one_authorization(api: Api, agent: AuthorizedClient):
    answer = await agent.exchange(await agent.code(), resource=agent.resource)
    tokens = answer.json()
    assert tokens | {"access_token": "", "refresh_token": ""} == {
        **{"access_token": "", "refresh_token": "", "token_type": "Bearer", "expires_in": 8 * 3600},
        "scope": "mcp",
    }
    assert (answer.headers["cache-control"], answer.headers["pragma"]) == ("no-store", "no-cache")
    assert await counts(agent, tokens["access_token"])
    (begun,) = await api.records(BEGUN)
    assert (begun.context.by, begun.detail["subject"], begun.detail["client"]) == (
        *("app:agent", "alice"),
        agent.client.client_id,
    )
    other = await agent.tokens()
    assert len({it.object for it in await api.records(BEGUN)}) == 2  # one family for each authorization
    log = str(await api.records())
    assert not any(
        text in log for it in (tokens, other) for text in (it["access_token"], it["refresh_token"])
    )


BAD_CODES: dict[str, tuple[dict[str, str | None], str]] = {
    "another redirect URI": ({"redirect_uri": "http://127.0.0.1:1456/callback"}, "invalid_grant"),
    "no redirect URI": ({"redirect_uri": None}, "invalid_request"),
    "another verifier": ({"code_verifier": "w" * 43}, "invalid_grant"),
    "a short verifier": ({"code_verifier": "v"}, "invalid_grant"),
    "no verifier": ({"code_verifier": None}, "invalid_request"),
    "another resource": ({"resource": "https://gateway.example/mcp/other"}, "invalid_target"),
    "more scopes": ({"scope": "mcp admin"}, "invalid_scope"),
    "another code": ({"code": "x" * 43}, "invalid_grant"),
    "no client": ({"client_id": None}, "invalid_client"),
    "an unknown client": ({"client_id": "cli_0000000000000000000000"}, "invalid_client"),
    "an assertion of a client without keys": ({"client_assertion": "a.b.c"}, "invalid_client"),
    "a secret": ({"client_secret": "x"}, "invalid_client"),
}


async def test_rfc6749_5_2_a_wrong_request_gets_nothing_and_leaves_the_code(agent: AuthorizedClient):
    code = await agent.code()
    found = {}
    for case, (changes, error) in BAD_CODES.items():
        answer = await agent.exchange(**{"code": code, **changes})  # type: ignore[arg-type]  # a code is there
        found[case] = (answer.status_code, answer.json()["error"])
        assert found[case] == (401 if error == "invalid_client" else 400, error), case
    assert (await agent.exchange(code)).status_code == 200


async def test_a_code_is_another_clients_or_expired(api: Api, agent: AuthorizedClient):
    other = await authorized_client(api, "agent")
    code = await agent.code()
    assert (await other.exchange(code)).json()["error"] == "invalid_grant"
    api.clock.advance(60)
    assert (await agent.exchange(code)).json()["error"] == "invalid_grant"


async def test_rfc6749_4_1_2_a_code_used_twice_ends_its_family_and_no_other(
    api: Api, agent: AuthorizedClient, caplog: pytest.LogCaptureFixture
):
    code, other = await agent.code(), await agent.tokens()
    first = (await agent.exchange(code)).json()
    with caplog.at_level(logging.ERROR):
        assert (await agent.exchange(code)).json()["error"] == "invalid_grant"
    assert "token replayed: code_replayed" in caplog.text
    assert not await counts(agent, first["access_token"])
    assert (await agent.refresh(first["refresh_token"])).json()["error"] == "invalid_grant"
    assert await counts(agent, other["access_token"])
    (ended,) = await api.records(REPLAYED)
    assert (ended.detail["reason"], ended.detail["access_tokens"]) == ("code_replayed", 1)


async def test_rfc6749_6_a_refresh_gives_a_successor_and_leaves_older_access_tokens(
    api: Api, agent: AuthorizedClient
):
    tokens = await agent.tokens(scopes=("mcp", "read"))
    api.clock.advance(HOUR)
    answer = (await agent.refresh(tokens["refresh_token"], scope="mcp")).json()
    assert answer["refresh_token"] != tokens["refresh_token"]
    assert answer["scope"] == "mcp"  # of this access token: the next refresh may have all again
    assert (await agent.refresh(answer["refresh_token"])).json()["scope"] == "mcp read"
    assert await counts(agent, tokens["access_token"])
    bad = [
        await agent.refresh(answer["refresh_token"], **changes)
        for changes in ({"scope": "mcp admin"}, {"resource": "https://gateway.example/mcp/other"})
    ]
    assert [it.json()["error"] for it in bad] == ["invalid_scope", "invalid_target"]
    assert len(await api.records(REFRESHED)) == 2


async def test_processes_that_share_a_token_file_get_the_same_successor(api: Api, agent: AuthorizedClient):
    tokens = await agent.tokens()
    answers = await asyncio.gather(*(agent.refresh(tokens["refresh_token"]) for _ in range(8)))
    assert {it.status_code for it in answers} == {200}
    assert len({it.json()["refresh_token"] for it in answers}) == 1
    assert all([await counts(agent, it.json()["access_token"]) for it in answers])
    replays = [it.detail.get("replay", 0) for it in await api.records(REFRESHED)]
    assert sorted(replays) == list(range(8))
    api.clock.advance(10 * MINUTE - 1)
    late = (await agent.refresh(tokens["refresh_token"])).json()
    assert late["refresh_token"] == answers[0].json()["refresh_token"]


@pytest.mark.parametrize("how", ["late", "often", "again and again", "not at all"])
async def test_rfc9700_4_14_2_a_replay_beyond_the_window_ends_the_family_with_an_alarm(
    api: Api, agent: AuthorizedClient, how: str, caplog: pytest.LogCaptureFixture
):
    tokens = await agent.tokens()
    newest = (await agent.refresh(tokens["refresh_token"])).json()
    if how == "late":
        api.clock.advance(10 * MINUTE)
    elif how == "again and again":  # later than a race, within the window
        for _ in range(3):
            api.clock.advance(1.5 * MINUTE)
            assert (await agent.refresh(tokens["refresh_token"])).status_code == 200
    elif how == "often":
        for _ in range(10):
            assert (await agent.refresh(tokens["refresh_token"])).status_code == 200
    else:
        api.parts.settings.oauth_replay_window = timedelta(0)
    with caplog.at_level(logging.ERROR):
        answer = await agent.refresh(tokens["refresh_token"])
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")
    assert "token replayed: token_replayed" in caplog.text
    for access in (tokens["access_token"], newest["access_token"]):
        assert not await counts(agent, access)
    assert (await agent.refresh(newest["refresh_token"])).json()["error"] == "invalid_grant"
    (ended,) = await api.records(REPLAYED)
    assert ended.detail["reason"] == FamilyEnd.TOKEN_REPLAYED
    assert ended.context.by == f"claimed:client:{agent.client.client_id}"


async def test_a_replay_of_another_client_ends_nothing(api: Api, agent: AuthorizedClient):
    tokens = await agent.tokens()
    newest = (await agent.refresh(tokens["refresh_token"])).json()
    api.clock.advance(10 * MINUTE)
    other = await authorized_client(api, "agent")
    for text in (tokens["refresh_token"], newest["refresh_token"], "evg_rtk_x", newest["access_token"]):
        assert (await other.refresh(text)).json()["error"] == "invalid_grant"
    assert (await agent.refresh(newest["refresh_token"])).status_code == 200


async def test_rfc9700_2_2_2_a_client_with_a_key_keeps_its_refresh_token(api: Api):
    await api.app_with("agent", Action.PROXY)
    agent = await authorized_client(api, "agent", new_key())
    tokens = await agent.tokens()
    for _ in range(12):
        api.clock.advance(HOUR)
        assert (await agent.refresh(tokens["refresh_token"])).json()["refresh_token"] == tokens[
            "refresh_token"
        ]
    proof: dict[str, Any] = agent._proof()
    assert (await agent.refresh(tokens["refresh_token"], **proof)).status_code == 200
    again = await agent.refresh(tokens["refresh_token"], **proof)
    assert (again.status_code, again.json()["error"]) == (401, "invalid_client")
    for changes in ({"client_assertion": None, "client_assertion_type": None}, {"client_assertion": "a.b.c"}):
        assert (await agent.refresh(tokens["refresh_token"], **changes)).status_code == 401
    stranger = AuthorizedClient(api, agent.client, "agent", new_key())
    assert (await stranger.refresh(tokens["refresh_token"])).status_code == 401


@pytest.mark.parametrize("end", ["idle", "age"])
async def test_a_family_ends_when_it_lies_idle_and_at_its_age(api: Api, agent: AuthorizedClient, end: str):
    tokens = await agent.tokens()
    settings = api.parts.settings
    if end == "idle":
        api.clock.advance(settings.oauth_idle.total_seconds())
    else:
        passed = timedelta(0)
        while (passed := passed + settings.oauth_idle / 2) < settings.oauth_lifetime:
            api.clock.advance(settings.oauth_idle.total_seconds() / 2)
            tokens = (await agent.refresh(tokens["refresh_token"])).json()
        api.clock.advance(settings.oauth_idle.total_seconds() / 2)
    assert (await agent.refresh(tokens["refresh_token"])).json()["error"] == "invalid_grant"


@pytest.mark.parametrize("gone", ["client", "app", "agent", "tenant", "login", "kind"])
async def test_what_is_disabled_refreshes_nothing_and_its_tokens_count_no_more(
    api: Api, agent: AuthorizedClient, gone: str
):
    app = await api.app_named("agent")
    rule = ClientLogin(
        **{"tenant": TENANT, "id": new_id("clg"), "app_id": app.id, "integration": "staff"},
        **{"issuer": "https://issuer.example", "changed_at": api.clock.now()},
    )
    async with api.worker.write() as tx:
        await tx.client_logins.put(rule, None)
    tokens, code = await agent.tokens(rule=rule.id), await agent.code(rule=rule.id)
    assert await counts(agent, tokens["access_token"])
    over = {"sponsor": "app:team", "ends_at": api.clock.now()}
    async with api.worker.write() as tx:
        if gone == "client":
            disabled = agent.client.model_copy(update={"disabled": True})
            await tx.oauth_clients.replace(disabled, expected=1)
        elif gone == "tenant":
            await disable_tenant(tx, TENANT)
        elif gone in ("login", "kind"):
            changes = {"id": new_id("clg")} if gone == "login" else {"registration": False}
            await tx.client_logins.put(rule.model_copy(update=changes), rule)
        else:
            changes = {"disabled": True} if gone == "app" else over
            await tx.access.put_app(app.model_copy(update=changes), expected=app.revision)
    error = "unauthorized_client" if gone == "client" else "invalid_grant"
    assert (await agent.refresh(tokens["refresh_token"])).json()["error"] == error
    assert (await agent.exchange(code)).json()["error"] == error
    assert not await counts(agent, tokens["access_token"])


async def test_rfc7009_a_client_revokes_its_tokens_and_no_others(api: Api, agent: AuthorizedClient):
    tokens, other = await agent.tokens(), await authorized_client(api, "agent")
    newest = (await agent.refresh(tokens["refresh_token"])).json()

    async def revoked(client: AuthorizedClient, token: str | None, **more: str) -> tuple[int, str]:
        answer = await client.ask("/oauth/revoke", token=token, **more)
        return answer.status_code, answer.json()["error"] if answer.content else ""

    assert await revoked(other, newest["access_token"]) == (400, "invalid_grant")
    assert await revoked(other, newest["refresh_token"]) == (400, "invalid_grant")
    assert await revoked(agent, None) == (400, "invalid_request")
    assert await revoked(agent, "evg_tok_x") == (400, "unsupported_token_type")
    assert await revoked(agent, "unknown") == (200, "")
    assert await revoked(agent, newest["access_token"], token_type_hint="access_token") == (200, "")
    assert not await counts(agent, newest["access_token"])
    assert await counts(agent, tokens["access_token"])
    for _ in range(2):
        assert await revoked(agent, tokens["refresh_token"]) == (200, "")
    assert not await counts(agent, tokens["access_token"])
    (ended,) = await api.records(ENDED)
    assert (ended.detail["reason"], ended.detail["access_tokens"]) == ("revoked", 1)
    assert ended.context.by == f"client:{agent.client.client_id}"


@pytest.mark.usefixtures("limit_time")
async def test_one_familys_refreshes_are_limited_and_no_other_familys(tmp_path: Path):
    async with running_api(tmp_path, token_limit_per_app=2) as api:
        await api.app_with("agent", Action.PROXY)
        agent = await authorized_client(api, "agent")
        busy, quiet = await agent.tokens(), await agent.tokens()
        answers = [await agent.refresh(busy["refresh_token"]) for _ in range(3)]
        assert [it.status_code for it in answers] == [200, 200, 429]
        assert "retry-after" in answers[-1].headers
        assert (await agent.refresh(quiet["refresh_token"])).status_code == 200
