"""The example's authorization server behaves as the demo and the end-to-end tests rely on.

Everything goes over plain httpx2; named after the clause it shows where there is one.
"""

import asyncio
import base64
import hashlib
import secrets
import sys
from collections import Counter
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
import pytest
import pytest_asyncio

from examples.demo.authorization_server import AuthorizationServer
from tests.fakes.patience import PATIENCE_S
from tests.fakes.providers.authorization_server import running_authorization_server

REDIRECT = "http://127.0.0.1:1/callback"  # no server listens there: the subject stops before it
LIVE = 60

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one server for all of them: it takes 1.5 s to start


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory) -> AsyncIterator[AuthorizationServer]:
    options = ("--access-token-seconds", str(LIVE), "--grace", "120")
    async with running_authorization_server(tmp_path_factory.mktemp("lenient"), *options) as running:
        await running.register(REDIRECT)
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def strict_server(tmp_path) -> AsyncIterator[AuthorizationServer]:
    """Rotation without grace: a second use of a refresh token revokes its family."""
    async with running_authorization_server(tmp_path, "--grace", "0") as running:
        await running.register(REDIRECT)
        yield running


class Client:
    """A plain OAuth client, one request at a time."""

    def __init__(self, server: AuthorizationServer) -> None:
        self.server = server
        self.http = httpx2.AsyncClient(base_url=server.issuer, trust_env=False, timeout=PATIENCE_S)
        self.verifier = secrets.token_urlsafe(32)
        self.state = secrets.token_urlsafe(16)

    def authorization_url(self, **changes: str) -> str:
        digest = hashlib.sha256(self.verifier.encode()).digest()
        query = {
            "response_type": "code",
            "client_id": self.server.client_id,
            "redirect_uri": REDIRECT,
            "scope": "read",
            "state": self.state,
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
            **changes,
        }
        return f"{self.server.issuer}/authorize/?" + urlencode({k: v for k, v in query.items() if v})

    async def callback(self, *, allow: bool = True, **changes: str) -> dict[str, list[str]]:
        url = self.authorization_url(**changes)
        landing = await self.server.scripted_consent(url, allow=allow, stop_before=REDIRECT)
        return parse_qs(urlsplit(landing.url).query)

    async def token_request(self, **form: str) -> httpx2.Response:
        return await self.http.post("/token/", data=form, auth=self.credentials)

    async def exchange(self, code: str) -> httpx2.Response:
        return await self.token_request(
            grant_type="authorization_code", code=code, redirect_uri=REDIRECT, code_verifier=self.verifier
        )

    async def tokens(self) -> dict:
        reply = await self.exchange((await self.callback())["code"][0])
        assert reply.status_code == 200
        return reply.json()

    async def refresh(self, token: str) -> httpx2.Response:
        return await self.token_request(grant_type="refresh_token", refresh_token=token)

    async def revoke(self, token: str, hint: str) -> httpx2.Response:
        form = {"token": token, "token_type_hint": hint}
        return await self.http.post("/revoke_token/", data=form, auth=self.credentials)

    @property
    def credentials(self) -> tuple[str, str]:
        return self.server.client_id, self.server.client_secret


@pytest_asyncio.fixture(loop_scope="module")
async def client(server) -> AsyncIterator[Client]:
    made = Client(server)
    yield made
    await made.http.aclose()


@pytest_asyncio.fixture(loop_scope="module")
async def strict_client(strict_server) -> AsyncIterator[Client]:
    made = Client(strict_server)
    yield made
    await made.http.aclose()


async def test_rfc7636_no_challenge_no_code(client):
    callback = await client.callback(code_challenge="", code_challenge_method="")
    assert callback["error"] == ["invalid_request"]
    assert "code" not in callback


async def test_rfc6749_4_1_2_1_a_declined_consent_says_so(client):
    callback = await client.callback(allow=False)
    assert callback["error"] == ["access_denied"]
    assert callback["state"] == [client.state]
    # django-oauth-toolkit 3.4.1 advertises `iss` and sends it with codes only, where RFC 9207
    # section 2 wants it on errors as well. When this fails, it has learnt to.
    assert "iss" not in callback


async def test_within_grace_the_old_refresh_token_brings_the_same_answer(client):
    first = await client.tokens()
    second = (await client.refresh(first["refresh_token"])).json()
    again = await client.refresh(first["refresh_token"])
    assert again.status_code == 200
    assert again.json()["expires_in"] == LIVE  # of the first answer: the token is older than this says
    assert {k: again.json()[k] for k in ("access_token", "refresh_token")} == {
        k: second[k] for k in ("access_token", "refresh_token")
    }


async def test_rfc9700_4_14_without_grace_reuse_ends_the_whole_family(strict_server, strict_client):
    first = await strict_client.tokens()
    second = (await strict_client.refresh(first["refresh_token"])).json()
    assert (await strict_client.refresh(first["refresh_token"])).json()["error"] == "invalid_grant"
    assert (await strict_client.refresh(second["refresh_token"])).json()["error"] == "invalid_grant"
    assert (await strict_server.introspect(second["access_token"]))["active"] is False


async def test_racing_refreshes_are_each_answered_and_counted(server, client):
    first = await client.tokens()
    calls, answers = await server.calls("refresh_token"), await server.answers("refresh_token")
    replies = await asyncio.gather(*(client.refresh(first["refresh_token"]) for _ in range(20)))
    assert Counter(reply.status_code for reply in replies) == {200: 20}, server.last_lines()
    pairs = {(reply.json()["access_token"], reply.json()["refresh_token"]) for reply in replies}
    assert len(pairs) == 1
    assert await server.calls("refresh_token") == calls + 20
    assert (await server.answers("refresh_token"))["200"] == answers.get("200", 0) + 20


async def test_a_withheld_answer_was_acted_upon_and_its_client_may_vanish(server, client):
    first, before = await client.tokens(), await server.held()
    await server.hold_next("refresh_token")
    caller = asyncio.create_task(client.refresh(first["refresh_token"]))
    await _until(server, holding=1)
    assert not caller.done()
    assert (await server.introspect(first["access_token"]))["active"] is False  # it has acted
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    await _until(server, holding=0, abandoned=before["abandoned"] + 1)
    again = (await client.refresh(first["refresh_token"])).json()
    assert (await server.whoami(again["access_token"])).status_code == 200


async def test_its_control_surface_counts_tokens(server, client):
    live, spent = await server.refresh_tokens()
    first = await client.tokens()
    second = (await client.refresh(first["refresh_token"])).json()
    assert await server.refresh_tokens() == (live + 1, spent + 1)
    known = await server.secrets()
    for tokens in (first, second):
        assert tokens["access_token"] in known
        assert tokens["refresh_token"] in known
    assert client.verifier in known


async def test_a_withheld_answer_comes_when_released(server, client):
    first, before = await client.tokens(), await server.held()
    await server.hold_next("refresh_token")
    caller = asyncio.create_task(client.refresh(first["refresh_token"]))
    await _until(server, holding=1)
    await server.release()
    assert (await caller).status_code == 200
    await _until(server, holding=0, released=before["released"] + 1)


async def test_the_control_surface_needs_its_key(client):
    for method, path in (("POST", "clients"), ("GET", "counts"), ("GET", "issued"), ("POST", "hold")):
        reply = await client.http.request(method, f"/_demo/{path}", json={}, headers={"X-Control-Key": "x"})
        assert reply.status_code == 403


async def test_it_restarts_with_its_data_and_ends_silently(tmp_path):
    first = await AuthorizationServer.start(tmp_path, interpreter=("-W", "error"))
    assert await first.stop() == 0
    second = await AuthorizationServer.start(tmp_path, interpreter=("-W", "error"))
    assert await second.stop() == 0
    assert (first.user, first.password) == (second.user, second.password)
    assert [*first.last_lines(), *second.last_lines()] == []


async def test_a_port_in_use_is_said_plainly(server, tmp_path):
    child = await asyncio.create_subprocess_exec(
        *_command("--data", str(tmp_path / "other"), "--port", str(urlsplit(server.issuer).port)),
        stderr=asyncio.subprocess.PIPE,
    )
    _, words = await child.communicate()
    assert child.returncode == 1
    assert b"can't listen on 127.0.0.1" in words
    assert b"Traceback" not in words


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "examples.authorization_server", *arguments]


async def _until(server: AuthorizationServer, **wanted: int) -> None:
    """Wait until the server says so of its withheld answers."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            held = await server.held()
            if all(held[name] == value for name, value in wanted.items()):
                return
            await asyncio.sleep(0.02)
