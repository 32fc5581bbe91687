"""Limits of what isn't a lease: guesses of an address, tokens and requests of an app."""

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
import pytest_asyncio

from evergrant_server.core.access import Action
from tests.fakes.api import Api, running_api
from tests.fakes.assertions import asserting_app

pytestmark = pytest.mark.usefixtures("limit_time")
PROXY = {"trusted_proxies": ("127.0.0.0/8",)}


@pytest_asyncio.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Api]:
    """An API behind a proxy, with room for three guesses a minute."""
    async with running_api(tmp_path, guess_limit_per_address=3, **PROXY) as api:
        yield api


async def visit(api: Api, path: str, address: str) -> httpx2.Response:
    return await api.get(path, headers={"X-Forwarded-For": address})


async def test_an_address_that_guesses_links_waits_and_others_do_not(guarded: Api, limit_time: list[float]):
    key = await guarded.app_for("asker", Action.CONNECT)
    made = await guarded.post(
        "/v1/connections", key, {"integration": "crm", "subject": "user-1"},
        headers={"X-Forwarded-For": "192.0.2.7"},
    )  # fmt: skip
    link = urlsplit(made.json()["connect_url"]).path
    for n in range(4):
        assert (await visit(guarded, f"/connect/guess-{n}", "192.0.2.1")).status_code in (400, 404)
    refused = await visit(guarded, link, "192.0.2.1")
    assert refused.status_code == 429
    assert refused.headers["content-type"].startswith("text/html")
    assert refused.headers["retry-after"] == "20"
    assert refused.headers["ratelimit"] == '"guesses";r=0;t=20'
    assert "default-src 'none'" in refused.headers["content-security-policy"]
    assert (await visit(guarded, link, "192.0.2.2")).status_code == 200
    limit_time[0] += 20.1
    assert (await visit(guarded, link, "192.0.2.1")).status_code == 200


async def test_guesses_at_the_token_endpoint_and_of_a_state_count_together_and_right_ones_do_not(
    guarded: Api,
):
    async def ask(address: str, **form: str) -> httpx2.Response:
        return await guarded.client.post("/oauth/token", data=form, headers={"X-Forwarded-For": address})

    admin = await guarded.app_with("admin", Action.ADMIN)
    await guarded.active_for("sync", Action.TOKEN)
    app = await asserting_app(guarded, admin, "sync")
    wrong = {"grant_type": "client_credentials", "client_id": app.id}
    for _ in range(2):
        assert (await ask("2001:db8::1", **wrong)).status_code == 401
        state = "/oauth/callback/int_0000000000000000000000?state=guess&code=x"
        assert (await visit(guarded, state, "2001:db8::2")).status_code == 400  # the same network of 64 bits
    refused = await ask("2001:db8::ffff", **wrong)
    assert refused.status_code == 429
    assert (refused.json()["code"], refused.json()["violated-policies"]) == ("rate_limited", ["guesses"])
    assert (await ask("2001:db8:0:1::1", **wrong)).status_code == 401


@pytest.mark.parametrize(
    ("peer", "last"),
    [("127.0.0.1", 404), ("172.17.0.1", 404), ("fe80::1", 404), ("9.9.9.9", 429), ("2620:fe::fe", 429)],
)
async def test_a_forged_address_hides_no_client_and_a_private_network_is_no_client(
    tmp_path: Path, peer: str, last: int
):
    """Behind a proxy that isn't configured one guesser would keep all others away."""
    async with running_api(tmp_path, guess_limit_per_address=1) as api:
        transport = httpx2.ASGITransport(app=api.app, client=(peer, 1))
        async with httpx2.AsyncClient(transport=transport, base_url="http://e") as client:
            for n in range(3):
                forged = {"X-Forwarded-For": f"192.0.2.{n}"}
                answer = await client.get("/connect/guess", headers=forged)
            assert answer.status_code == last


async def test_an_app_gets_so_many_tokens_and_no_more(tmp_path: Path):
    async with running_api(tmp_path, token_limit_per_app=2) as api:
        admin = await api.app_with("admin", Action.ADMIN)
        await api.active_for("sync", Action.TOKEN)
        app = await asserting_app(api, admin, "sync")
        answers = [await app.ask() for _ in range(3)]
        assert [it.status_code for it in answers] == [200, 200, 429]
        assert answers[2].json()["violated-policies"] == ["tokens"]
        assert answers[2].headers["retry-after"] == "30"


async def test_a_limit_of_requests_counts_those_of_an_app_that_are_no_leases(tmp_path: Path):
    async with running_api(tmp_path, request_limit_per_app=2) as api:
        _, key = await api.active_for("reader", Action.TOKEN, Action.CONNECT)
        other = await api.app_with("other", Action.CONNECT)
        answers = [await api.get("/v1/connections", key) for _ in range(3)]
        assert [it.status_code for it in answers] == [200, 200, 429]
        assert answers[0].headers["ratelimit"] == '"requests";r=1;t=30'
        assert answers[2].json()["violated-policies"] == ["requests"]
        assert (await api.get("/v1/connections", other)).status_code == 200
        assert (await api.lease(key)).status_code == 200
