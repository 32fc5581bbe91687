"""A whole installation in this process: store, keys, a worker on a real Temporal server, the relay.

    async with installation(temporal_address, database_url, data_dir, allow=(idp.allowance,)) as place:
        connection = await place.connect(idp)

The API is not part of it; what a browser and the API would write is written by `connect`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2

import worker
from evergrant_server.api.http.authentication import format_key, hash_secret, new_key_secret
from evergrant_server.core.access import Action, App, AppKey, Permit
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.connections.grant import Grant, Origin, TokenSet
from evergrant_server.core.definition import Definition, DefinitionState
from evergrant_server.core.ids import (
    AppId,
    AttemptId,
    ConnectionId,
    ConsentId,
    DefinitionId,
    IntegrationId,
    KeyId,
    OutboxId,
    PermitId,
    new_id,
)
from evergrant_server.core.integrations import Endpoints, Integration, RefreshRules
from evergrant_server.core.lifecycle.schedule import NEWEST_RULES
from evergrant_server.core.lifecycle.snapshot import state_from_store
from evergrant_server.core.messages.base import Message, RequestContext, SignalName, connection_workflow_id
from evergrant_server.core.messages.connection import (
    ConnectionStart,
    ConsentGranted,
    EnsureFresh,
    EnsureFreshResult,
    Revoke,
)
from evergrant_server.core.outbox import OutboxKind, OutboxMessage
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.attempt import LIMITS, LateTokens, TimeLimits
from evergrant_server.crypto.keyring import KeyRing, Role
from evergrant_server.settings import Settings, load_settings
from evergrant_server.store import Transaction
from evergrant_server.store.database import schema
from evergrant_server.wiring.platform import Platform, open_platform
from providers.definition.schema import ProviderSpec
from providers.requests.authorization_url import build_authorization_url, new_random_value
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.observations import TENANT, Observations
from tests.fakes.providers.scripted_provider import ScriptedProvider

__all__ = ["ASKED", "TENANT", "Installation", "admin_key", "installation", "prepared", "running_worker"]

ASKED = RequestContext(by="app:crm-sync", trace_id="0af7651916cd43dd8448eb211c80319c")
CALLBACK = "http://127.0.0.1:9/oauth/callback"


class Installation(Observations):
    """The parts, and the shortest way to a connection that is alive."""

    async def integration(self, idp: ScriptedProvider, rules: RefreshRules | None = None) -> Integration:
        now = self.parts.clock.now()
        integration = Integration(
            tenant=TENANT,
            id=IntegrationId(new_id("int")),
            name=f"crm-{new_id('int')[-6:]}",
            provider="generic",
            client_id=idp.client_id,
            issuer=idp.issuer,
            default_scopes=("read",),
            refresh=rules or RefreshRules(),
            endpoints=Endpoints(
                issuer=idp.issuer,
                authorization_endpoint=f"{idp.issuer}/authorize",
                token_endpoint=f"{idp.issuer}/token",
                revocation_endpoint=f"{idp.issuer}/revoke",
            ),
            created_at=now,
            changed_at=now,
        )
        async with self.store.write() as tx:
            return await tx.integrations.put(integration, Secret(idp.client_secret), expected=None)

    async def connect(
        self, idp: ScriptedProvider, rules: RefreshRules | None = None, *, policy: str = "on_demand"
    ) -> Connection:
        """A connection with its first grant, as a consent leaves it."""
        integration = await self.integration(idp, rules)
        connection = await self.begin(integration, policy)
        await self.consent(idp, integration, connection)
        return await self.until(connection, lambda c: c.state is LifecycleState.ACTIVE)

    async def begin(
        self,
        integration: Integration,
        policy: str = "on_demand",
        *,
        deadline: timedelta = timedelta(hours=1),
        subject: str = "user-1",
    ) -> Connection:
        """A connection whose subject hasn't consented yet, with its workflow."""
        now = self.parts.clock.now()
        connection = Connection(
            tenant=TENANT,
            id=ConnectionId(new_id("con")),
            integration_id=integration.id,
            integration=integration.name,
            provider=integration.provider,
            subject=subject,
            requested_scopes=("read",),
            refresh_policy=policy,
            created_at=now,
            changed_at=now,
            consent_deadline=now + deadline,
        )
        start = ConnectionStart(
            tenant=TENANT,
            connection_id=connection.id,
            integration_id=integration.id,
            integration=integration.name,
            provider=integration.provider,
            subject_hash=self.parts.ring.subject_hash(TENANT, connection.subject),
            rules=NEWEST_RULES,
            state=state_from_store(connection, None, None, now),
            context=ASKED,
        )
        async with self.store.write() as tx:
            await tx.connections.add(connection)
            await self._put(tx, connection, OutboxKind.START_WORKFLOW, "", start)
        self.parts.relay.notify()
        return connection

    async def consent(
        self,
        idp: ScriptedProvider,
        integration: Integration,
        connection: Connection,
        *,
        tell: bool = True,
        endpoint: str = "token",
        slot_scopes: dict[str, tuple[str, ...]] | None = None,
    ) -> Consent:
        """What the connect page and the callback write, with a code of the real server.

        `endpoint` is the token endpoint's when the browser left. Without `tell` the workflow isn't told:
        its message is under way, or was lost with it.
        """
        now = self.parts.clock.now()
        verifier = new_random_value()
        code = await self._code(idp, integration, verifier, slot_scopes or {})
        consent = Consent(
            tenant=TENANT,
            id=ConsentId(new_id("cns")),
            connection_id=connection.id,
            integration_id=integration.id,
            status=ConsentStatus.STARTED,
            scopes=("read",),
            slot_scopes=slot_scopes or {},
            link_hash=new_id("cns"),
            state_hash=new_id("cns"),
            browser_hash="b",
            redirect_uri=f"{CALLBACK}/{integration.id}",
            issuer=idp.issuer,
            token_endpoint=f"{idp.issuer}/{endpoint}",
            created_at=now,
            expires_at=now + timedelta(hours=1),
            by="subject",
            trace_id="",
        )
        async with self.store.write() as tx:
            await tx.consents.add(consent, Secret("link"))
            received = consent.model_copy(update={"status": ConsentStatus.CODE_RECEIVED})
            consent = await tx.consents.replace(received, expected=1, verifier=verifier, code=Secret(code))
        if tell:
            await self.tell_consent(connection, consent)
        return consent

    async def tell_consent(self, connection: Connection, consent: Consent) -> None:
        """The message alone, for when it comes later than what it says."""
        granted = ConsentGranted(consent_id=consent.id, context=RequestContext(by="subject"))
        async with self.store.write() as tx:
            await self._put(tx, connection, OutboxKind.SIGNAL, SignalName.CONSENT_GRANTED, granted)
        self.parts.relay.notify()

    async def _code(
        self,
        idp: ScriptedProvider,
        integration: Integration,
        verifier: Secret,
        slot_scopes: dict[str, tuple[str, ...]],
    ) -> str:
        """Go where the browser is sent; the scripted server consents by itself."""
        async with self.store.read() as tx:
            brought = await tx.definitions.serving(TENANT, integration.provider)
        url = build_authorization_url(
            self.parts.registry.serving(integration.provider, brought),
            integration,
            redirect_uri=f"{CALLBACK}/{integration.id}",
            state=new_random_value(),
            verifier=verifier,
            scopes=("read",),
            slot_scopes=slot_scopes,
        )
        async with httpx2.AsyncClient(
            trust_env=False, timeout=PATIENCE_S, verify=idp.tls.trust if idp.tls else True
        ) as browser:
            answer = await browser.get(url)
        return dict(parse_qsl(urlsplit(answer.headers["location"]).query))["code"]

    async def revoke(self, connection: Connection, *, tell: bool = True) -> None:
        """What the API writes: the store first, the workflow by the outbox."""
        async with self.store.write() as tx:
            current = await tx.connections.get(TENANT, connection.id)
            assert current is not None
            asked = current.revocation_requested("left", self.parts.clock.now())
            await tx.connections.replace(asked, expected=current.revision)
        if tell:
            await self.tell_revoke(connection)

    async def tell_revoke(self, connection: Connection) -> None:
        """The message alone, for when it comes later than what it says."""
        async with self.store.write() as tx:
            order = Revoke(reason="left", context=ASKED)
            await self._put(tx, connection, OutboxKind.SIGNAL, SignalName.REVOKE, order)
        self.parts.relay.notify()

    async def ensure_fresh(
        self, connection: Connection, seen: int, limit_s: float = PATIENCE_S
    ) -> EnsureFreshResult:
        ask = EnsureFresh(seen_generation=seen, context=ASKED)
        return await self.parts.link.ensure_fresh(TENANT, connection.id, ask, timeout=limit_s)

    async def restore(self, connection: Connection, backup: tuple[Connection, Grant]) -> None:
        """Put an older row back, as restoring the database would."""
        old, grant = backup
        current = await self.row(connection)
        tokens = TokenSet(access_token=Secret("an-old-token"), refresh_token=Secret("a-spent-token"))
        async with self.store.write() as tx:
            await tx.grants.install(old, tokens, grant, origin=Origin.NEW, expected=current.revision)

    async def keep_late(
        self, connection: Connection, tokens: TokenSet, *, from_generation: int = 0
    ) -> LateTokens:
        """Tokens of a reply that came late, which wait to be verified."""
        now = self.parts.clock.now()
        late = LateTokens(
            tenant=TENANT,
            attempt_id=AttemptId(new_id("att")),
            connection_id=connection.id,
            from_generation=from_generation,
            requested_at=now,
            received_at=now,
        )
        async with self.store.write() as tx:
            assert await tx.late_tokens.add(late, tokens)
        return late

    async def define(self, document: dict[str, Any], **more: Any) -> Definition:
        """A definition of the tenant's own: version 1, and active, unless `more` says otherwise."""
        now = self.parts.clock.now()
        given: dict[str, Any] = {"version": 1, "state": DefinitionState.ACTIVE, "share": 1.0, **more}
        definition = Definition(
            tenant=TENANT,
            id=DefinitionId(new_id("def")),
            name=document["name"],
            document=document,
            proposed_by=ASKED.by,
            created_at=now,
            changed_at=now,
            **given,
        )
        async with self.store.write() as tx:
            await tx.definitions.add(definition)
        return definition

    async def integration_with(self, idp: ScriptedProvider, document: dict[str, Any]) -> Integration:
        """An integration at a provider of the tenant's own definition."""
        rules = ProviderSpec.model_validate(document).refresh_rules()
        made = await self.integration(idp, rules)
        await self.define(document)
        there = made.model_copy(update={"provider": document["name"], "endpoints": None, "issuer": None})
        async with self.store.write() as tx:
            return await tx.integrations.put(there, None, expected=made.revision)

    async def terminate(self, connection: Connection) -> None:
        """End its run by hand."""
        await self.parts.client.get_workflow_handle(connection_workflow_id(TENANT, connection.id)).terminate()

    async def _put(
        self, tx: Transaction, connection: Connection, kind: OutboxKind, name: str, payload: Message
    ) -> None:
        message = OutboxMessage(
            tenant=TENANT,
            id=OutboxId(new_id("out")),
            kind=kind,
            target=connection_workflow_id(TENANT, connection.id),
            name=name,
            payload=payload.model_dump(mode="json"),
            created_at=self.parts.clock.now(),
        )
        await tx.outbox.add(message)


async def admin_key(parts: Platform) -> str:
    """The API key of an app that may do everything."""
    now, secret = parts.clock.now(), new_key_secret()
    app = App(tenant=TENANT, id=AppId(new_id("app")), name="admin", created_at=now)
    key = AppKey(
        tenant=TENANT, id=KeyId(new_id("key")), app_id=app.id, secret_hash=hash_secret(secret), created_at=now
    )
    permit = Permit(
        tenant=TENANT,
        id=PermitId(new_id("per")),
        app_id=app.id,
        name="all",
        integration="*",
        actions=tuple(Action),
        created_at=now,
    )
    async with parts.store.write() as tx:
        await tx.access.put_app(app, expected=None)
        await tx.access.add_key(key)
        await tx.access.put_permit(permit, expected=None)
    return format_key(key.id, secret)


async def prepared(
    temporal_address: str, database_url: str, data_dir: Path, allow: tuple[str, ...], **more: Any
) -> Settings:
    """Keys, schema and settings of an installation with a task queue of its own.

    Its schedules begin nothing by themselves, unless `more` says so: tests count what was started.
    """
    more.setdefault("reconcile_interval", timedelta(days=365))
    more.setdefault("introspection_interval", timedelta(days=24 * 365))
    settings = load_settings(
        data_dir=data_dir,
        database_url=database_url,
        temporal_address=temporal_address,
        temporal_task_queue=f"evergrant-{new_id('out')[-8:]}",
        egress_allow=allow,
        **more,
    )
    if not settings.key_path.exists():
        KeyRing.create(settings.key_path)
    await schema.upgrade(settings.database_url)
    return settings


@asynccontextmanager
async def running_worker(settings: Settings, limits: TimeLimits = LIMITS) -> AsyncIterator[None]:
    """A worker in this process, for the length of a block."""
    stop = asyncio.Event()
    task = asyncio.create_task(worker.run(settings, stop, limits))
    try:
        yield
    finally:
        stop.set()
        await task


@asynccontextmanager
async def installation(
    temporal_address: str,
    database_url: str,
    data_dir: Path,
    *,
    allow: tuple[str, ...] = (),
    limits: TimeLimits = LIMITS,
    **more: Any,
) -> AsyncIterator[Installation]:
    settings = await prepared(temporal_address, database_url, data_dir, allow, **more)
    async with open_platform(settings, Role.OPERATOR) as parts, running_worker(settings, limits):
        yield Installation(parts)
