"""Eight processes of a client share one file of tokens, through the gateway, whose time is skipped.

    async with sharing(folder, processes=8) as shared:
        await shared.expire()           # 8 hours later: every process finds its access token expired
        await shared.robbed()           # what a thief's late replay leads to

API, gateway and the worker's activities are real, over one store, with the settings as they are. The remote
MCP server takes the newest token of its authorization server alone, which rotates strictly. What is left out
is Temporal: the one refresh at a time that a connection's workflow makes is made by a lock.
"""

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from sqlalchemy import ColumnElement, func, select
from sqlmodel import col

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import Grant, Origin
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages.connection import EnsureFresh, EnsureFreshResult
from evergrant_server.journal import Journal
from evergrant_server.settings import Settings
from evergrant_server.store.audit_tables import AuditRow
from evergrant_server.store.database.columns import Row
from evergrant_server.store.oauth.tables import RefreshTokenRow
from evergrant_server.wiring.platform import Platform
from tests.fakes.api import Api, running_api
from tests.fakes.http_server import served
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.gateway import OK, Gateway, RawUpstream, Seen, answer, running_gateway, upstream_api
from tests.fakes.platform.gateway_clients import AuthorizedClient, authorized_client
from tests.fakes.platform.skipped_time import LoneWorker
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.rows import discovered, pinned_hosts, token_set

PROCESS = Path(__file__).with_name("process.py")
SUBJECT = "user-1"
LATE = timedelta(minutes=7, seconds=45)
REFUSED = answer(b"", "401 Unauthorized", "WWW-Authenticate: Bearer")


@dataclass
class Counts:
    """What became of it so far."""

    expiries: int = 0
    calls: int = 0
    refreshes: int = 0  # that processes sent
    lost: list[str] = field(default_factory=list)


class Sharing:
    """The processes, and the parts that they meet."""

    def __init__(
        self,
        api: Api,
        gateway: Gateway,
        idp: ScriptedProvider,
        agent: AuthorizedClient,
        connection: Connection,
        first: dict[str, Any],
        file: Path,
    ) -> None:
        self.api, self.gateway, self.idp, self.agent, self.connection = api, gateway, idp, agent, connection
        self.first, self.file = first, file
        self.counts = Counts()
        self.processes: list[asyncio.subprocess.Process] = []

    @property
    def tokens(self) -> dict[str, Any]:
        return json.loads(self.file.read_text())

    async def expire(self) -> None:
        """Skip an access token's life, at whose end every process comes at once, and one late: as late as one
        was seen to, 7 min 45 s."""
        lifetime = self.api.parts.settings.oauth_access_token_lifetime
        self.api.clock.advance(lifetime.total_seconds())
        late, *others = random.sample(self.processes, len(self.processes))
        await self._tell("read", late)
        await self._tell("act", *others)
        self.api.clock.advance(LATE.total_seconds())
        await self._tell("finish", late)
        self.counts.expiries += 1

    async def rotations(self) -> int:
        """How many refresh tokens have a successor."""
        return await self._count(RefreshTokenRow, col(RefreshTokenRow.rotated_at).is_not(None))

    async def robbed(self) -> tuple[int, int, int]:
        """A thief sends the first refresh token. The statuses of that, of the processes' next call with the
        newest access token, and of a refresh with the newest refresh token."""
        thief = await self.agent.refresh(self.first["refresh_token"])
        headers = {"Content-Type": "application/json"}
        path, token = f"/mcp/{self.connection.id}", self.tokens["access_token"]
        call = await self.gateway.call("POST", path, token, content=b"{}", headers=headers)
        mine = await self.agent.refresh(self.tokens["refresh_token"])
        assert (thief.json()["error"], mine.json()["error"]) == ("invalid_grant", "invalid_grant")
        return thief.status_code, call.status_code, mine.status_code

    async def repeated(self) -> int:
        """A thief sends a used refresh token of another authorization every 90 seconds; how often it gets
        tokens until that authorization has ended."""
        tokens = await self.agent.tokens(SUBJECT, self.connection.id)
        newest = (await self.agent.refresh(tokens["refresh_token"])).json()
        for times in range(100):
            self.api.clock.advance(90)
            if (await self.agent.refresh(tokens["refresh_token"])).status_code != 200:
                mine = await self.agent.refresh(newest["refresh_token"])
                assert mine.json()["error"] == "invalid_grant"
                return times
        raise AssertionError("a hundred times")

    async def alarms(self) -> int:
        return await self._count(AuditRow, col(AuditRow.action) == AuditAction.TOKEN_FAMILY_REPLAYED.value)

    async def _count(self, table: type[Row], condition: ColumnElement[bool]) -> int:
        query = select(func.count()).select_from(table).where(condition)
        async with self.api.worker.read() as tx:
            return int((await tx.connection.execute(query)).scalar_one())

    async def _tell(self, word: str, *processes: asyncio.subprocess.Process) -> None:
        now = self.api.clock.now().timestamp()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(f"{word} {now}\n".encode())
        for said in await asyncio.gather(*(self._said(it) for it in processes)):
            if "lost" in said:
                self.counts.lost.append(said["lost"])
            elif said:
                assert said["status"] == 200, said
                self.counts.calls += 1
                self.counts.refreshes += said["refreshes"]

    async def _said(self, process: asyncio.subprocess.Process) -> dict[str, Any]:
        assert process.stdout is not None
        return json.loads(await asyncio.wait_for(process.stdout.readline(), PATIENCE_S))


@asynccontextmanager
async def sharing(folder: Path, processes: int = 8, expiries: int = 20) -> AsyncIterator[Sharing]:
    """`expiries`: as many as may come before the authorization would be too old."""
    hours = timedelta(hours=9 * (expiries + 10))
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(
            running_api(folder, oauth_lifetime=hours, token_limit_per_app=0)
        )
        idp = await stack.enter_async_context(ScriptedProvider(expires_in=2 * 3600))
        upstream = await stack.enter_async_context(upstream_api())
        connection = await _connection(api, idp, upstream)
        gateway = await stack.enter_async_context(running_gateway(api, upstream))
        url = await stack.enter_async_context(served(api.app))
        api.link.on_refresh = _Refresher(api, idp, connection, folder).refresh
        await api.app_with("agent", Action.PROXY)
        agent = await authorized_client(api, "agent")
        first = await agent.tokens(SUBJECT, connection.id)
        file = folder / "tokens.json"
        until = api.clock.now().timestamp() + first["expires_in"]
        file.write_text(json.dumps({**first, "expires_at": until}))
        shared = Sharing(api, gateway, idp, agent, connection, first, file)
        resource = f"http://127.0.0.1:{gateway.port}/mcp/{connection.id}"
        words = (str(PROCESS), str(file), f"{url}/oauth/token", agent.client.client_id, resource)
        try:
            for _ in range(processes):
                shared.processes.append(await _started(words))
            yield shared
        finally:
            for process in shared.processes:
                process.kill()
                await process.wait()


async def _started(words: tuple[str, ...]) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(sys.executable, "-S", *words, stdin=pipe, stdout=pipe)


async def _connection(api: Api, idp: ScriptedProvider, upstream: RawUpstream) -> Connection:
    """A subject's connection to the MCP server, whose authorization server is `idp`."""
    idp.client_secret = "hush-hush"
    params = {"url": f"{upstream.url}/mcp"}
    facts = discovered(idp) | {"default_scopes": ("read",)}
    integration = await api.integration("tools", provider="mcp", params=params, **facts)
    connection = await api.connection(integration, subject=SUBJECT, requested_scopes=("read",))

    async def serve(seen: Seen, writer: asyncio.StreamWriter) -> None:
        newest = [*idp.families[-1].access_tokens][-1]
        writer.write(OK if seen.values("authorization") == [f"Bearer {newest}"] else REFUSED)

    upstream.handler = serve
    tokens, now = token_set(idp.grant()), api.clock.now()
    grant = Grant.from_tokens(tokens, generation=1, requested=("read",), at=now)
    async with api.worker.write() as tx:
        return await tx.grants.install(
            connection.granted(now),
            tokens,
            grant,
            origin=Origin.NEW,
            expected=connection.revision,
            hosts=pinned_hosts(integration),
        )


class _Refresher:
    """What the connection's workflow does about a request for a fresh token: one refresh at a time."""

    def __init__(self, api: Api, idp: ScriptedProvider, connection: Connection, folder: Path) -> None:
        self._api, self._connection, self._turn = api, connection, asyncio.Lock()
        settings = Settings(
            data_dir=folder,
            database_url=api.parts.settings.database_url,
            key_file=api.parts.settings.key_file,
            egress_allow=(idp.allowance,),
            circuit_threshold=0,
        )
        nothing, store = cast(Any, None), api.worker
        parts = Platform(
            settings, api.clock, store.ring, store, api.parts.registry, nothing, nothing, nothing, nothing
        )
        self._worker = LoneWorker(parts, api.clock, Journal(folder / "journals"))

    async def refresh(self, tenant: Tenant, id: ConnectionId, ask: EnsureFresh) -> EnsureFreshResult:
        async with self._turn:
            row = await self._api.row(tenant, id)
            if row.generation <= ask.seen_generation:
                await self._worker.refresh(self._connection)
                row = await self._api.row(tenant, id)
            return EnsureFreshResult(generation=row.generation)
