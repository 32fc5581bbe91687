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


class Client:
    """A plain OAuth client, one request at a time."""

    def __init__(self, server: AuthorizationServer) -> None:
        self.server = server
        self.http = httpx2.AsyncClient(base_url=server.issuer, trust_env=False, timeout=PATIENCE_S)
        self.verifier = secrets.token_urlsafe(32)
        self.state = secrets.token_urlsafe(16)

    async def callback(self, *, allow: bool = True) -> dict[str, list[str]]:
        digest = hashlib.sha256(self.verifier.encode()).digest()
        query = {
            "response_type": "code",
            "client_id": self.server.client_id,
            "redirect_uri": REDIRECT,
            "scope": "read",
            "state": self.state,
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        url = f"{self.server.issuer}/authorize/?{urlencode(query)}"
        landing = await self.server.scripted_consent(url, allow=allow, stop_before=REDIRECT)
        return parse_qs(urlsplit(landing.url).query)

    async def token_request(self, **form: str) -> httpx2.Response:
        credentials = (self.server.client_id, self.server.client_secret)
        return await self.http.post("/token/", data=form, auth=credentials)

    async def refresh_token(self) -> str:
        (code,) = (await self.callback())["code"]
        form = {"code": code, "redirect_uri": REDIRECT, "code_verifier": self.verifier}
        reply = await self.token_request(grant_type="authorization_code", **form)
        assert reply.status_code == 200
        return reply.json()["refresh_token"]


@pytest_asyncio.fixture(loop_scope="module")
async def client(server) -> AsyncIterator[Client]:
    made = Client(server)
    yield made
    await made.http.aclose()


async def test_rfc6749_4_1_2_1_a_declined_consent_says_so(client):
    callback = await client.callback(allow=False)
    assert callback["error"] == ["access_denied"]
    assert callback["state"] == [client.state]
    # django-oauth-toolkit 3.4.1 advertises `iss` and sends it with codes only, where RFC 9207
    # section 2 wants it on errors as well. When this fails, it has learnt to.
    assert "iss" not in callback


async def test_racing_refreshes_are_each_answered_and_counted(server, client):
    first = await client.refresh_token()
    calls, answers = await server.calls("refresh_token"), await server.answers("refresh_token")
    form = {"grant_type": "refresh_token", "refresh_token": first}
    replies = await asyncio.gather(*(client.token_request(**form) for _ in range(20)))
    assert Counter(reply.status_code for reply in replies) == {200: 20}, server.last_lines()
    pairs = {(reply.json()["access_token"], reply.json()["refresh_token"]) for reply in replies}
    assert len(pairs) == 1
    assert await server.calls("refresh_token") == calls + 20
    assert (await server.answers("refresh_token"))["200"] == answers.get("200", 0) + 20


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
    port = str(urlsplit(server.issuer).port)
    command = [sys.executable, "-m", "examples.authorization_server", "--port", port]
    child = await asyncio.create_subprocess_exec(
        *command, "--data", str(tmp_path / "other"), stderr=asyncio.subprocess.PIPE
    )
    _, words = await child.communicate()
    assert child.returncode == 1
    assert b"can't listen on 127.0.0.1" in words
    assert b"Traceback" not in words
