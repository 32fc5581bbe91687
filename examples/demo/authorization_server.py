"""The authorization server's process and its control API."""

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import httpx2

from examples.demo.processes import Process
from examples.demo.subject import Landing, Subject


class AuthorizationServer:
    """A running `python -m examples.authorization_server`, with its user's credentials."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.issuer: str = process.ready["issuer"]
        self.pid = process.pid
        self.api: str = process.ready.get("api", "")  # with --tls alone
        self.authorities = Path(process.ready.get("authorities", ""))
        known = json.loads(Path(process.ready["credentials"]).read_text())
        self.user: str = known["user"]
        self.password: str = known["password"]
        self.client_id = "evergrant-demo"
        self.client_secret = secrets.token_urlsafe(32)
        self._control = httpx2.AsyncClient(
            base_url=self.issuer,
            headers={"X-Control-Key": known["control_key"]},
            trust_env=False,
            timeout=120,
        )

    @classmethod
    async def start(cls, data: Path, *arguments: str, interpreter: Sequence[str] = ()) -> Self:
        """Start it with `arguments` on a free port. `interpreter` holds options for Python itself."""
        module = [*interpreter, "-m", "examples.authorization_server", "--data", str(data)]
        return cls(await Process.start("authorization server", [*module, *arguments]))

    async def stop(self) -> int:
        await self._control.aclose()
        return await self._process.stop()

    def last_lines(self) -> list[str]:
        """The last lines of the server's output, for the message of a failing test."""
        return list(self._process.last_lines)

    async def register(
        self, redirect_uri: str, *, client_id: str | None = None, grant_type: str = "authorization-code"
    ) -> None:
        """Register this object's confidential client, or another one with its secret."""
        body = {
            "client_id": client_id or self.client_id,
            "client_secret": self.client_secret,
            "redirect_uri": redirect_uri,
            "grant_type": grant_type,
        }
        (await self._control.post("/_demo/clients", json=body)).raise_for_status()

    async def calls(self, what: str) -> int:
        """How often the token endpoint was called for a grant type, or `revocation`."""
        return (await self._counts())["calls"].get(what, 0)

    async def answers(self, what: str) -> dict[str, int]:
        """Its answers to a grant type by HTTP status."""
        return (await self._counts())["answers"].get(what, {})

    async def refresh_tokens(self) -> tuple[int, int]:
        """How many refresh tokens are live, and how many are spent or revoked."""
        issued = (await self._control.get("/_demo/issued")).raise_for_status().json()
        return issued["live"], issued["spent"]

    async def secrets(self) -> list[str]:
        """Every code, verifier and token that its token endpoint handled, and our client's secret."""
        issued = (await self._control.get("/_demo/issued")).raise_for_status().json()
        return [*issued["secrets"], self.client_secret]

    async def hold_next(self, grant_type: str) -> None:
        """Withhold the next answer to this grant type, after the server has processed the request."""
        (await self._control.post("/_demo/hold", json={"grant_type": grant_type})).raise_for_status()

    async def held(self) -> dict[str, Any]:
        return (await self._control.get("/_demo/hold")).raise_for_status().json()

    async def release(self) -> None:
        (await self._control.delete("/_demo/hold")).raise_for_status()

    async def introspect(self, token: str) -> dict[str, Any]:
        """RFC 7662, with the client's own credentials."""
        reply = await self._control.post(
            "/introspect/", data={"token": token}, auth=(self.client_id, self.client_secret)
        )
        return reply.raise_for_status().json()

    async def whoami(self, token: str) -> httpx2.Response:
        """Call the protected resource."""
        return await self._control.get("/api/whoami", headers={"Authorization": f"Bearer {token}"})

    async def scripted_consent(
        self, url: str, *, allow: bool = True, stop_before: str | None = None
    ) -> Landing:
        """Open `url` in a new browser, log in as this server's user, and allow or decline."""
        async with Subject(self.user, self.password) as subject:
            return await subject.consent(url, allow=allow, stop_before=stop_before)

    async def _counts(self) -> dict[str, Any]:
        return (await self._control.get("/_demo/counts")).raise_for_status().json()
