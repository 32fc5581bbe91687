"""Apps at work while processes are replaced: leases, calls through the gateway, consents and revocations."""

import asyncio
import random
import time
from asyncio import StreamWriter
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.e2e.world import leave
from tests.fakes.patience import PATIENCE_S
from tests.fakes.providers.scripted_provider import Call, Family, ScriptedProvider

TOKEN_S = 30
_REPLY_S = 0.3  # of the token endpoint: so that refreshes are under way at every moment
_BETWEEN_LEASES_S = 0.05
_NO_KEEP_ALIVE = httpx2.Limits(max_keepalive_connections=0)


class Provider(ScriptedProvider):
    """It rotates strictly, takes its time, and has an API that says whether a token is good."""

    def __init__(self) -> None:
        super().__init__(expires_in=TOKEN_S)
        self.spent_twice = 0

    async def _reply(self, call: Call, writer: StreamWriter) -> bytes | None:
        if call.endpoint == "token":
            await asyncio.sleep(_REPLY_S)
        return await super()._reply(call, writer)

    def _act(self, call: Call) -> tuple[int, dict[str, str], dict[str, Any] | None]:
        if call.endpoint == "api/me":
            good = self.active(call.headers.get("authorization", "").removeprefix("Bearer "))
            return (200 if good else 401), {"Content-Type": "application/json"}, {"active": good}
        return super()._act(call)

    def _refresh(self, token: str) -> tuple[int, dict[str, Any]]:
        self.spent_twice += any(token in family.used for family in self.families)
        return super()._refresh(token)


@dataclass
class Tally:
    """What the apps got in one phase."""

    leases: int = 0
    calls: int = 0
    flows: int = 0
    slowest_s: float = 0.0
    gateway_away_s: float = 0.0
    failed: list[str] = field(default_factory=list)


@dataclass
class Load:
    """The apps. `phase` names where what happens is counted."""

    idp: Provider
    url: str
    gateway_url: str
    admin_key: str
    connections: list[str] = field(default_factory=list)
    families: list[Family] = field(default_factory=list)
    tallies: dict[str, Tally] = field(default_factory=dict)
    phase: str = ""
    _numbers: Counter[str] = field(default_factory=Counter)
    _key: str = ""

    @property
    def now(self) -> Tally:
        return self.tallies.setdefault(self.phase, Tally())

    def client(self, key: str = "", timeout: float = 30) -> httpx2.AsyncClient:
        headers = {"Authorization": f"Bearer {key or self._key}"}
        return httpx2.AsyncClient(
            base_url=self.url, headers=headers, limits=_NO_KEEP_ALIVE, timeout=timeout, trust_env=False
        )

    async def prepare(self, size: int) -> None:
        """An integration at the provider, an app, and connections of its subjects."""
        async with self.client(self.admin_key, PATIENCE_S) as admin:
            body = {
                "provider": "generic",
                "issuer": self.idp.issuer,
                "client_id": self.idp.client_id,
                "client_secret": self.idp.client_secret,
                "default_scopes": ["read"],
                "binding": "none",
                "params": {"api_base_url": self.idp.url("api")},
            }
            await _done(await admin.put("/v1/integrations/crm", json=body))
            await _done(await admin.put("/v1/apps/report", json={}))
            permit = {"integration": "crm", "subjects": ["*"], "actions": ["token", "connect", "proxy"]}
            await _done(await admin.put("/v1/apps/report/permits/crm", json=permit))
            self._key = (await _done(await admin.post("/v1/apps/report/keys", json={})))["key"]
        async with self.client(timeout=PATIENCE_S) as app:
            begun = [await self._connect(app, f"user-{number}") for number in range(size)]
            self.connections = [await self._active(app, connection) for connection in begun]
        self.families = list(self.idp.families)

    async def lease(self, until: asyncio.Event) -> None:
        """Lease tokens of connections at random; each has to be good at the provider."""
        async with self.client() as app:
            while not until.is_set():
                await self.lease_once(app, random.choice(self.connections))
                await asyncio.sleep(_BETWEEN_LEASES_S)

    async def lease_once(self, app: httpx2.AsyncClient, connection: str) -> bool:
        began, tally = time.monotonic(), self.now
        try:
            answer = await app.post(f"/v1/connections/{connection}/token", json={"min_ttl": 2})
        except httpx2.HTTPError as error:
            tally.failed.append(f"lease: {type(error).__name__}")
            return False
        tally.slowest_s = max(tally.slowest_s, time.monotonic() - began)
        if answer.status_code != 200:
            tally.failed.append(f"lease: {answer.status_code} {answer.json().get('code')}")
        elif not self.idp.active(answer.json()["access_token"]):
            tally.failed.append("lease: the provider doesn't know the token")
        else:
            tally.leases += 1
            return True
        return False

    async def call(self, until: asyncio.Event) -> None:
        """Call the provider's API through the gateway. There is one: while it is replaced, an app waits."""
        headers = {"Authorization": f"Bearer {self._key}"}
        async with httpx2.AsyncClient(
            base_url=self.gateway_url, headers=headers, limits=_NO_KEEP_ALIVE, timeout=30, trust_env=False
        ) as app:
            away_since: float | None = None
            while not until.is_set():
                try:
                    answer = await app.get(f"/v1/proxy/{random.choice(self.connections)}/me")
                except httpx2.ConnectError:
                    away_since = away_since or time.monotonic()
                    await asyncio.sleep(0.05)
                    continue
                except httpx2.HTTPError as error:
                    self.now.failed.append(f"call: {type(error).__name__}")
                    continue
                if away_since is not None:
                    self.now.gateway_away_s += time.monotonic() - away_since
                    away_since = None
                if answer.status_code == 200:
                    self.now.calls += 1
                else:
                    self.now.failed.append(f"call: {answer.status_code} {answer.text[:100]}")
                await asyncio.sleep(2 * _BETWEEN_LEASES_S)

    async def come_and_go(self, until: asyncio.Event) -> None:
        """Connect somebody, lease, and revoke, again and again."""
        async with self.client(timeout=PATIENCE_S) as app:
            while not until.is_set():
                self._numbers["visitor"] += 1
                began = self.phase
                try:
                    begun = await self._connect(app, f"visitor-{self._numbers['visitor']}")
                    connection = await self._active(app, begun)
                    await self.lease_once(app, connection)
                    await _done(
                        await app.post(f"/v1/connections/{connection}/revoke", json={"reason": "left"})
                    )
                    await self._state(app, connection, "revoked")
                    self.now.flows += 1
                except (httpx2.HTTPError, RuntimeError, AssertionError, TimeoutError) as error:
                    self.now.failed.append(f"flow begun in {began!r}: {type(error).__name__} {error}"[:300])

    async def _connect(self, app: httpx2.AsyncClient, subject: str) -> dict[str, Any]:
        begun = await _done(
            await app.post("/v1/connections", json={"integration": "crm", "subject": subject})
        )
        async with httpx2.AsyncClient(limits=_NO_KEEP_ALIVE, timeout=PATIENCE_S, trust_env=False) as browser:
            consented = await browser.get(await leave(browser, begun["connect_url"]))
            await browser.get(consented.headers["location"], follow_redirects=True)
        return begun

    async def _active(self, app: httpx2.AsyncClient, begun: dict[str, Any]) -> str:
        await self._state(app, begun["id"], "active")
        return begun["id"]

    async def _state(self, app: httpx2.AsyncClient, connection: str, wanted: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while (await self.state_of(app, connection)) != wanted:
                await asyncio.sleep(0.1)

    async def state_of(self, app: httpx2.AsyncClient, connection: str) -> str:
        return (await _done(await app.get(f"/v1/connections/{connection}")))["state"]


async def _done(answer: httpx2.Response) -> dict[str, Any]:
    if not answer.is_success:
        raise RuntimeError(
            f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.text}"
        )
    return answer.json() if answer.content else {}
