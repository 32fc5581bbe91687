"""The API in this process over a real store and registry, with a scripted stand-in for Temporal.

    api.link.refreshes_with("at-2")     # what a workflow would do, done to the real store
    answer = await api.post("/v1/lease", key, {...})

Two stores share one database: the API's, which can't open refresh tokens, and the worker's, which installs.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest_asyncio
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from evergrant_server import audit
from evergrant_server.access.context import ApiContext
from evergrant_server.api.app import create_app
from evergrant_server.api.connections.create import offer_consent
from evergrant_server.audit.lease_ledger import LeaseLedger
from evergrant_server.core.access import Action, App
from evergrant_server.core.audit import AuditAction, AuditRecord
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import Grant, Origin, TokenSet
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.integrations import Integration
from evergrant_server.core.messages.connection import EnsureFresh, EnsureFreshResult
from evergrant_server.core.outbox import OutboxMessage
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.egress import EgressPolicy
from evergrant_server.settings import Settings
from evergrant_server.settings.types import CertificateHeader
from evergrant_server.store import LeaseRows, Store
from evergrant_server.store.database.engine import Pool
from evergrant_server.temporal_link.stories import StoryCodec, StoryKeys
from providers.definition.registry import Registry
from tests.fakes.clock import SetClock
from tests.fakes.databases import NOW, migrated_sqlite, sqlite_url
from tests.fakes.rows import a_connection, add_first_consent, an_integration, put_app
from tests.fakes.scripted_link import ScriptedLink

TENANT = Tenant("acme")
OTHER = Tenant("acme-2")  # one tenant's name begins with the other's
PUBLIC_URL = "https://evergrant.test"
LIFETIME = 3600.0


class CountingRelay:
    """Stands in for `OutboxRelay` and counts its notifications."""

    nudges = 0

    def notify(self) -> None:
        self.nudges += 1


class Api:
    """One API process with its client, and the shortest way to apps, integrations, connections."""

    def __init__(
        self,
        parts: ApiContext,
        worker: Store,
        clock: SetClock,
        certificates: CertificateHeader | None = None,
    ) -> None:
        self.parts = parts
        self.store = parts.store
        self.worker = worker
        self.clock = clock
        self.link: ScriptedLink = parts.link  # type: ignore[assignment]  # it is one: see `running_api`
        self.relay: CountingRelay = parts.relay  # type: ignore[assignment]  # it is one: see `running_api`
        self.app = create_app(parts, certificates)
        self.app.openapi = partial(_openapi, self.app.openapi)
        self.client = self.browser()

    def browser(self) -> httpx2.AsyncClient:
        """A client with cookies of its own, which follows no redirect."""
        transport = httpx2.ASGITransport(app=self.app)
        base = self.parts.settings.public_url
        return httpx2.AsyncClient(transport=transport, base_url=base, follow_redirects=False)

    async def call(self, method: str, path: str, key: str | None = None, **more: Any) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if "json" in more:  # with escapes: they can say half a character, which no client of ours would send
            headers["Content-Type"] = "application/json"
            more["content"] = json.dumps(more.pop("json"))
        return await self.client.request(method, path, headers=headers | more.pop("headers", {}), **more)

    async def get(self, path: str, key: str | None = None, **more: Any) -> httpx2.Response:
        return await self.call("GET", path, key, **more)

    async def post(self, path: str, key: str | None = None, body: Any = None, **more: Any) -> httpx2.Response:
        return await self.call("POST", path, key, json=body if body is not None else {}, **more)

    async def lease(self, key: str, **more: Any) -> httpx2.Response:
        return await self.post("/v1/lease", key, {"integration": "crm", "subject": "user-1", **more})

    async def app_with(
        self,
        name: str,
        *actions: Action,
        tenant: Tenant = TENANT,
        integration: str = "*",
        subjects: tuple[str, ...] = ("*",),
        ceiling: tuple[str, ...] | None = None,
        return_to: tuple[str, ...] = (),
    ) -> str:
        """An app with one permit for `actions` (none: no permit at all). Returns its key."""
        limits = {"integration": integration, "subjects": subjects, "scope_ceiling": ceiling}
        permit = {"name": "only", "actions": actions, **limits} if actions else None
        async with self.worker.write() as tx:
            return await put_app(tx, tenant, name, self.clock.now(), permit, return_to=return_to)

    async def app_for(self, name: str, *actions: Action, **permit: Any) -> str:
        """The key of an app, beside an integration that it may use."""
        await self.integration()
        return await self.app_with(name, *actions, **permit)

    async def app_named(self, name: str) -> App:
        async with self.worker.read() as tx:
            found = await tx.access.app_by_name(TENANT, name)
        assert found is not None
        return found

    async def integration(
        self, name: str = "crm", *, tenant: Tenant = TENANT, provider: str = "gitlab", **more: Any
    ) -> Integration:
        more = {"name": name, "provider": provider, "default_scopes": ("read_user",), **more}
        async with self.worker.write() as tx:
            await tx.tenants.begin(tenant)
            made = an_integration(tenant, self.clock.now(), **more)
            return await tx.integrations.put(made, Secret("hush-hush"), expected=None)

    async def connection(self, integration: Integration, **changes: Any) -> Connection:
        """A connection that waits for its consent."""
        changes = {"requested_scopes": ("read_user",), **changes}
        connection = a_connection(integration, self.clock.now(), **changes)
        async with self.worker.write() as tx:
            await tx.connections.add(connection)
        return connection

    async def active(
        self,
        integration: Integration,
        token: str = "at-1",
        *,
        lifetime: float | None = LIFETIME,
        refreshable: bool = True,
        **changes: Any,
    ) -> Connection:
        """A connection with a grant whose access token is `token`."""
        scopes, kind = changes.pop("scopes", ("read_user",)), changes.pop("token_type", "Bearer")
        said: dict[str, Any] = {"lifetime": lifetime, "scopes": scopes, "token_type": kind}
        made = await self.connection(integration, **changes)
        return await self.install(made, token, refreshable=refreshable, **said)

    async def active_for(self, name: str, *actions: Action, **permit: Any) -> tuple[Connection, str]:
        """An active connection of a new integration, and the key of an app that may do `actions`."""
        connection = await self.active(await self.integration())
        key = await self.app_with(name, *actions, **permit)
        await self.made_by(connection, name)
        return connection, key

    async def made_by(self, connection: Connection, app: str) -> None:
        """The connection's grant came by a consent that this app requested."""
        async with self.worker.write() as tx:
            await add_first_consent(tx, connection, (await self.app_named(app)).id)

    async def install(
        self,
        connection: Connection,
        token: str,
        *,
        lifetime: float | None = LIFETIME,
        scopes: tuple[str, ...] = ("read_user",),
        token_type: str = "Bearer",
        refreshable: bool = True,
    ) -> Connection:
        """What a worker does when a token arrives."""
        now = self.clock.now()
        tokens = TokenSet(
            access_token=Secret(token),
            token_type=token_type,
            refresh_token=Secret(f"rt-of-{token}") if refreshable else None,
            expires_in=lifetime,
            scopes=scopes,
        )
        async with self.worker.write() as tx:
            current = await tx.connections.get(connection.tenant, connection.id)
            assert current is not None
            new = not current.generation or current.state is LifecycleState.NEEDS_REAUTH
            after = current.granted(now) if new else current.refreshed(now)
            grant = Grant.from_tokens(
                tokens, generation=after.generation, requested=current.requested_scopes, at=now
            )
            origin = Origin.NEW if new else Origin.REFRESH
            return await tx.grants.install(after, tokens, grant, origin=origin, expected=current.revision)

    def refreshes_with(self, *tokens: str, after: asyncio.Event | None = None) -> None:
        """Each ensure_fresh installs the next of `tokens` in the real store, as the workflow would."""
        left = list(tokens)

        async def refresh(tenant: Tenant, connection_id: ConnectionId, ask: EnsureFresh) -> EnsureFreshResult:
            if after is not None:
                await after.wait()
            installed = await self.install(await self.row(tenant, connection_id), left.pop(0))
            return EnsureFreshResult(generation=installed.generation)

        self.link.on_refresh = refresh

    def refreshes_fail(self, problem: ErrorCode, retry_after: float | None = None) -> None:
        async def refuse(tenant: Tenant, connection_id: ConnectionId, ask: EnsureFresh) -> EnsureFreshResult:
            return EnsureFreshResult(generation=ask.seen_generation, problem=problem, retry_after=retry_after)

        self.link.on_refresh = refuse

    def refreshes_are_refused(self, reason: ErrorCode) -> None:
        """The provider refuses the refresh token: the worker writes it, and the workflow says so."""

        async def refuse(tenant: Tenant, connection_id: ConnectionId, ask: EnsureFresh) -> EnsureFreshResult:
            now_it_is = await self.row(tenant, connection_id)
            await self.change(now_it_is, lambda it: it.rejected(reason, self.clock.now()))
            return EnsureFreshResult(generation=ask.seen_generation, problem=reason)

        self.link.on_refresh = refuse

    async def row(self, tenant: Tenant, connection_id: ConnectionId) -> Connection:
        async with self.worker.read() as tx:
            found = await tx.connections.get(tenant, connection_id)
        assert found is not None
        return found

    async def records(self, *actions: AuditAction, of: str | None = None) -> list[AuditRecord]:
        """The audit log, or what it has of one object: all records, or those of `actions`."""
        async with self.worker.read() as tx:
            found = await audit.page(tx, TENANT, object=of, limit=500)
        return [it for it in found if not actions or it.action in actions]

    async def outbox(self) -> list[OutboxMessage]:
        """What waits to be delivered, and afterwards doesn't."""
        found: list[OutboxMessage] = []
        async with self.worker.write() as tx:
            while batch := await tx.outbox.claim("test", self.clock.now(), timedelta(seconds=30)):
                found += batch
                await tx.outbox.mark_delivered([it.id for it in batch], self.clock.now())
        return found

    async def change(self, connection: Connection, changed: Callable[[Connection], Connection]) -> Connection:
        """What another process does to a connection."""
        async with self.worker.write() as tx:
            current = await tx.connections.get(connection.tenant, connection.id)
            assert current is not None
            return await tx.connections.replace_names(changed(current), expected=current.revision)


_document: dict[str, Any] = {}


def _openapi(make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The OpenAPI document, which takes a second to make and is the same for every app of this process."""
    if not _document:
        _document.update(make())
    return _document


class SettingsOfTest(Settings):
    """What a test says: this machine's environment and the file `evergrant.env` say nothing."""

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, **_: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


@asynccontextmanager
async def running_api(
    folder: Path,
    *,
    public_url: str = PUBLIC_URL,
    lease_wait: float = 3.0,
    database_url: str = "",
    worker_url: str = "",
    certificates: CertificateHeader | None = None,
    now: datetime = NOW,
    ring: KeyRing | None = None,
    **more: Any,
) -> AsyncIterator[Api]:
    """Keys (those of `ring`, if it is given), and the API over a database: a fresh SQLite file, unless one is
    named; the worker may connect as another role. `more` are settings, `certificates` how a proxy in front
    hands on certificates."""
    clock, key_file = SetClock(now), folder / "keys.json"
    if ring is None:
        KeyRing.create(key_file)
        ring = KeyRing.open(key_file, Role.API)
    url = database_url or sqlite_url(folder)
    if not database_url:
        await migrated_sqlite(folder)
    settings = SettingsOfTest(
        data_dir=folder,
        database_url=url,
        key_file=key_file,
        public_url=public_url,
        tenant=TENANT,
        lease_wait=timedelta(seconds=lease_wait),
        allow_unbound_consent=True,
        **more,
    )
    store = await Store.open(url, ring, clock)
    worker = await Store.open(worker_url or url, KeyRing.open(key_file, Role.WORKER), clock)
    ledger = LeaseLedger(store.in_pool(Pool.LEDGER), "api-test", clock)
    await ledger.start()
    parts = ApiContext(
        settings=settings,
        store=store,
        ring=ring,
        registry=Registry.load(),
        clock=clock,
        link=ScriptedLink(),
        relay=CountingRelay(),
        ledger=ledger,
        lease_rows=LeaseRows(store),
        check_endpoint=EgressPolicy(allow=settings.egress_allow).check_endpoint,
        offer_consent=offer_consent,
    )
    api = Api(parts, worker, clock, certificates)
    api.link.codec = StoryCodec(StoryKeys(store), settings.temporal_namespace)
    try:
        yield api
    finally:
        await api.client.aclose()
        await api.app.state.refresher.stop()
        await api.app.state.refusals.stop()
        await api.app.state.networks.stop()
        await ledger.stop()
        await store.close()
        await worker.close()


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """One API over a SQLite store of its own for each test."""
    async with running_api(tmp_path) as running:
        yield running
