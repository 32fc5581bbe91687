"""OAuth clients in tests: a tenant whose people use them, a client's requests, and a person's browser."""

import base64
import hashlib
import secrets
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2

from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.oauth.authorizations import AuthorizationCode
from tests.fakes.api import Api
from tests.fakes.patience import PATIENCE_S
from tests.fakes.providers.login_issuer import LoginIssuer
from tests.fakes.visitor import Visitor, leads_to
from tests.security.people import client_at, worker_for

REDIRECT = "https://agent.example/callback"
LOOPBACK = "http://127.0.0.1:33418/callback"
COOKIE = "__Host-evergrant-subject"


async def agents_allowed(api: Api, issuer: LoginIssuer, **body: Any) -> tuple[Connection, str]:
    """A connection of user-1, the app `agents` that may call it, and the rule. Returns an admin's key too."""
    worker_for(api, issuer)
    await client_at(api, issuer)
    connection = await api.active(await api.integration())
    await api.app_with("agents", Action.PROXY)
    admin = await api.app_with("boss", Action.ADMIN)
    await put_rule(api, admin, **body)
    return connection, admin


async def put_rule(api: Api, admin: str, **body: Any) -> httpx2.Response:
    said = {"app": "agents", "integration": "staff", **body}
    made = await api.call("PUT", "/v1/client-login", admin, json=said)
    assert made.status_code in (200, 201), made.text
    return made


async def registered(api: Api, *uris: str, **more: Any) -> str:
    """The id of a client that registers itself."""
    body = {"client_name": "Coder", "redirect_uris": list(uris or (REDIRECT,)), **more}
    made = await api.post("/oauth/register", None, body)
    assert made.status_code == 201, made.text
    return str(made.json()["client_id"])


def resource_of(api: Api, connection: Connection | None) -> str:
    own = f"{api.parts.settings.gateway_public_url}/mcp"
    return own if connection is None else f"{own}/{connection.id}"


def a_challenge() -> tuple[str, str]:
    verifier = secrets.token_urlsafe(32)
    digest = hashlib.sha256(verifier.encode()).digest()
    return verifier, base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


class AgentUser(Visitor):
    """One browser of a person whose client sends it to Evergrant."""

    def __init__(self, api: Api, issuer: LoginIssuer) -> None:
        super().__init__(api)
        self.api, self.issuer = api, issuer

    def url(self, client_id: str, connection: Connection | None, **more: str | None) -> str:
        """A client's request."""
        said: dict[str, str | None] = {
            "response_type": "code",
            "client_id": client_id,
            "redirect_uri": REDIRECT,
            "code_challenge": a_challenge()[1],
            "code_challenge_method": "S256",
            "resource": resource_of(self.api, connection),
            "state": "of-the-client",
            **more,
        }
        return "/oauth/authorize?" + urlencode({name: it for name, it in said.items() if it is not None})

    async def ask(self, url: str, sub: str = "user-1") -> httpx2.Response:
        """Follow the client's request through our pages and the issuer, where `sub` is logged in."""
        self.issuer.person = {**self.issuer.person, "sub": sub}
        answer = await self.browser.get(url)
        for _ in range(8):
            where = answer.headers.get("location") or leads_to(answer)
            if where is None:
                return answer
            host = urlsplit(where).netloc
            if host == urlsplit(self.issuer.issuer).netloc:
                async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
                    self.provider_url = where
                    answer = await http.get(where)
            elif host in ("", "evergrant.test"):
                self.page = where
                answer = await self.browser.get(where)
            else:
                return answer
        raise AssertionError("it goes round in circles")

    async def decide(self, shown: httpx2.Response, decision: str = "allow") -> httpx2.Response:
        """Press a button of the page."""
        return self.left(await self.press(self.page, csrf_in(shown), decision))

    async def press(self, page: str, csrf: str, decision: str = "allow") -> httpx2.Response:
        return await self.browser.post(page, data={"csrf": csrf, "decision": decision})

    async def allow(self, url: str, sub: str = "user-1") -> dict[str, str]:
        """The whole way; the parameters that the client gets."""
        answer = await self.decide(await self.ask(url, sub))
        assert answer.status_code == 200, answer.text
        return self.sent


def csrf_in(shown: httpx2.Response) -> str:
    assert shown.status_code == 200, shown.text
    return shown.text.partition('name="csrf" value="')[2].partition('"')[0]


def sent_back(answer: httpx2.Response) -> dict[str, str]:
    """The parameters that a client gets by a redirect."""
    assert answer.status_code == 303, answer.text
    query = parse_qs(urlsplit(answer.headers["location"]).query, keep_blank_values=True)
    return {name: values[0] for name, values in query.items()}


async def code_row(api: Api, code: str) -> AuthorizationCode | None:
    async with api.worker.read() as tx:
        return await tx.authorization_codes.by_hash(AuthorizationCode.hash_of(code))
