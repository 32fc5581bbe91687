"""An independent authorization server in the random run: django-oauth-toolkit, on PostgreSQL.

Its refresh tokens rotate with a grace, and one that is used after that ends its family. Its
connections come from consents that a scripted person gives, through the API. What it counts itself
is part of the judgement.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from examples.demo.authorization_server import AuthorizationServer
from tests.fakes.databases import postgres
from tests.fakes.platform.processes import RunningPlatform
from tests.fakes.providers.authorization_server import running_authorization_server
from tests.faults.harness.database import arguments_of

CONNECTIONS = 6
READERS = 12
_TOKEN_S = 30
_GRACE_S = 180  # longer than an answer is waited for, and the second send after it
_NAME = "real"
_CONSENT_LIMIT_S = 60


@dataclass(frozen=True)
class Counted:
    """What the server says of itself."""

    refreshes: int = 0
    calls: int = 0
    live: int = 0
    spent: int = 0


class RealServer:
    def __init__(self, server: AuthorizationServer) -> None:
        self._server = server

    @property
    def allowance(self) -> str:
        return self._server.issuer.removeprefix("http://")

    async def consented(self, platform: RunningPlatform) -> list[str]:
        """Make an integration and its connections; returns their ids when each has its first grant."""
        body = {
            "provider": "generic",
            "issuer": self._server.issuer,
            "client_id": self._server.client_id,
            "client_secret": self._server.client_secret,
            "default_scopes": ["read"],
            "binding": "none",
            "refresh": {"rotation": "grace", "grace_s": _GRACE_S},
        }
        async with platform.client() as admin:
            made = _told(await admin.put(f"/v1/integrations/{_NAME}", json=body))
        await self._server.register(made["redirect_uri"])
        key = await platform.app("consents", _NAME, "connect", "token")
        async with platform.caller(key) as app:
            return [await self._consent(app, f"person-{number}") for number in range(CONNECTIONS)]

    async def _consent(self, app: httpx2.AsyncClient, subject: str) -> str:
        body = {"integration": _NAME, "subject": subject}
        made = _told(await app.post("/v1/connections", json=body))
        await self._server.scripted_consent(made["connect_url"])
        async with asyncio.timeout(_CONSENT_LIMIT_S):
            while _told(await app.get(f"/v1/connections/{made['id']}"))["state"] != "active":
                await asyncio.sleep(0.1)
        return str(made["id"])

    async def works(self, access_token: str) -> bool:
        """The protected resource takes it, or its database is away."""
        return (await self._server.whoami(access_token)).status_code not in (401, 403)

    async def honours(self, refresh_token: str | None) -> bool:
        """It gives an access token for it: this is a use, so only when everything is over."""
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token or ""}
        client = (self._server.client_id, self._server.client_secret)
        async with httpx2.AsyncClient(trust_env=False, timeout=30) as http:
            answer = await http.post(f"{self._server.issuer}/token/", data=form, auth=client)
        return answer.status_code == 200

    async def withhold_an_answer(self) -> None:
        """The server carries out the next refresh and withholds the reply until the client has given up."""
        await self._server.hold_next("refresh_token")

    async def withhold_no_more(self) -> None:
        await self._server.release()

    async def counted(self) -> Counted:
        live, spent = await self._server.refresh_tokens()
        answers = await self._server.answers("refresh_token")
        return Counted(answers.get("200", 0), await self._server.calls("refresh_token"), live, spent)

    async def secrets(self) -> list[str]:
        """Every code, verifier and token that crossed its token endpoint, and our client's secret."""
        return await self._server.secrets()


@asynccontextmanager
async def real_server(folder: Path) -> AsyncIterator[RealServer]:
    """Running with rotation, grace and reuse protection; its process ends with the block."""
    url = await postgres().fresh(migrated=False)
    place = f"{arguments_of(url)['host']}/{arguments_of(url)['database']}"
    options = ("--access-token-seconds", str(_TOKEN_S), "--grace", str(_GRACE_S), "--postgres", place)
    try:
        async with running_authorization_server(folder, *options, "--reuse-protection", "--rotate") as server:
            yield RealServer(server)
    finally:
        await postgres().drop(url)


def _told(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.is_success, answer.text
    return answer.json()
