"""A whole installation in this process: store, keys, a worker on a real Temporal server, the relay.

    async with installation(temporal_address, database_url, data_dir, idp) as place:
        connection = await place.connect()

The API is not part of it; what a browser and the API would write is written by `connect`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2

import worker
from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentKind
from evergrant_server.core.connections.grant import Grant, Origin, TokenSet
from evergrant_server.core.definition import Definition
from evergrant_server.core.ids import AttemptId, new_id
from evergrant_server.core.integrations import Integration, RefreshRules, Rotation
from evergrant_server.core.lifecycle.snapshot import start_message
from evergrant_server.core.messages.base import Message, Provenance, RequestContext
from evergrant_server.core.messages.connection import (
    ConsentGranted,
    EnsureFresh,
    EnsureFreshResult,
    ProviderChanged,
    Revoke,
)
from evergrant_server.core.messages.names import SignalName
from evergrant_server.core.outbox import signal_message
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.attempt import LIMITS, LateTokens, TimeLimits
from evergrant_server.crypto.keyring import KeyRing, Role
from evergrant_server.settings import Settings
from evergrant_server.store.database import schema
from evergrant_server.wiring.platform import Platform, open_platform
from providers.definition.schema import ProviderSpec
from tests.fakes.api import SettingsOfTest
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.observations import TENANT, Observations
from tests.fakes.platform.serving import serving
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.rows import (
    a_connection,
    a_consent,
    a_definition,
    add_code,
    an_integration,
    discovered,
    pinned_hosts,
    put_app,
)

ASKED = RequestContext(by="app:crm-sync", trace_id="0af7651916cd43dd8448eb211c80319c")
PROVENANCE = Provenance(workflow_id="w", run_id="r", event_id=1)
STRICT = RefreshRules(rotation=Rotation.STRICT)
NEVER_ROTATES = RefreshRules(rotation=Rotation.NONE)
CALLBACK = "http://127.0.0.1:9/oauth/callback"


class Installation(Observations):
    """The parts, one provider, and the shortest way to a connection that is alive."""

    def __init__(self, parts: Platform, idp: ScriptedProvider | None, *, with_worker: bool = True) -> None:
        super().__init__(parts)
        self._idp = idp
        self._with_worker = with_worker

    @property
    def idp(self) -> ScriptedProvider:
        assert self._idp is not None, "it was made without a provider"
        return self._idp

    async def integration(self, rules: RefreshRules | None = None, **changes: Any) -> Integration:
        said = {
            "name": f"crm-{new_id('int')[-6:]}",
            "refresh": rules or RefreshRules(),
            **discovered(self.idp),
        }
        integration = an_integration(TENANT, self.parts.clock.now(), **said | changes)
        async with self.store.write() as tx:
            return await tx.integrations.put(integration, Secret(self.idp.client_secret), expected=None)

    async def connect(self, rules: RefreshRules | None = None, *, policy: str = "on_demand") -> Connection:
        """A connection with its first grant, as a consent leaves it."""
        return await self.granted(await self.begin(await self.integration(rules), refresh_policy=policy))

    async def granted(self, connection: Connection) -> Connection:
        """Its subject consents."""
        await self.consent(connection)
        return await self.until(connection, lambda c: c.state is LifecycleState.ACTIVE)

    async def fleet(self, integration: Integration, size: int) -> list[Connection]:
        """Connections of one integration, each with a grant of its own."""
        begun = [await self.begin(integration, subject=f"user-{number}") for number in range(size)]
        for connection in begun:
            await self.consent(connection)
        return [await self.until(it, lambda c: c.state is LifecycleState.ACTIVE) for it in begun]

    async def begin(
        self,
        integration: Integration | None = None,
        *,
        deadline: timedelta = timedelta(hours=1),
        start: bool = True,
        **changes: Any,
    ) -> Connection:
        """A connection whose subject hasn't consented yet, with its workflow unless `start` is False.

        The workflow has looked at the store by then: begun later, it would act on what a test does meanwhile.
        """
        now = self.parts.clock.now()
        said = {"refresh_policy": "on_demand", "consent_deadline": now + deadline, **changes}
        connection = a_connection(integration or await self.integration(), now, **said)
        async with self.store.write() as tx:
            await tx.connections.add(connection)
        if start:
            await self.start(connection)
            if self._with_worker:
                await self.until_described(connection, lambda it: True)
        return connection

    async def start(self, connection: Connection) -> None:
        """Begin its workflow."""
        subject = self.parts.ring.subject_hash(TENANT, connection.subject)
        async with self.store.write() as tx:
            await tx.outbox.add(start_message(connection, subject, ASKED, self.parts.clock.now()))
        self.parts.relay.notify()

    async def consent(
        self, connection: Connection, *, tell: bool = True, endpoint: str = "token", **changes: Any
    ) -> Consent:
        """What the connect page and the callback write, with a code of the real server.

        `endpoint` is the token endpoint's when the browser left. Without `tell` the workflow isn't told:
        its message is under way, or was lost with it.
        """
        idp, integration = self.idp, await self.integration_of(connection)
        told = {
            "state_hash": new_id("cns"),
            "browser_hash": "b",
            "redirect_uri": f"{CALLBACK}/{integration.id}",
            "issuer": idp.issuer,
            "token_endpoint": idp.url(endpoint),
        }
        consent = a_consent(connection, self.parts.clock.now(), **told | changes)
        async with self.store.read() as tx:
            brought = await tx.definitions.serving(TENANT, integration.provider)
        spec = self.parts.registry.serving(integration.provider, brought)
        verify = idp.tls.trust if idp.tls else True
        async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S, verify=verify) as browser:
            consent = await add_code(self.store, spec, integration, consent, browser)
        if tell:
            await self.tell_consent(connection, consent)
        return consent

    async def unasked(self, connection: Connection, kind: ConsentKind) -> Consent:
        """A consent of a flow in which no subject is asked."""
        at, until = connection.created_at, connection.consent_deadline
        consent = Consent.without_subject(connection, kind, ("read",), ASKED, at=at, expires_at=until)
        async with self.store.write() as tx:
            await tx.consents.add(consent, None)
        return consent

    async def tell_consent(self, connection: Connection, consent: Consent) -> None:
        """The message alone, for when it comes later than what it says."""
        granted = ConsentGranted(consent_id=consent.id, context=RequestContext(by="subject"))
        await self._signal(connection, SignalName.CONSENT_GRANTED, granted)

    async def revoke(self, connection: Connection, *, tell: bool = True) -> None:
        """What the API writes: the store first, the workflow by the outbox."""
        async with self.store.write() as tx:
            current = await tx.connections.get(TENANT, connection.id)
            assert current is not None
            asked = current.revocation_requested("left", self.parts.clock.now())
            await tx.connections.replace(asked, expected=current.revision)
        if tell:
            await self.tell_revoke(connection)

    async def revoked(self, connection: Connection) -> Connection:
        """Revoke it, and wait until it is."""
        await self.revoke(connection)
        return await self.until(connection, lambda c: c.state is LifecycleState.REVOKED)

    async def tell_revoke(self, connection: Connection) -> None:
        """The message alone, for when it comes later than what it says."""
        await self._signal(connection, SignalName.REVOKE, Revoke(reason="left", context=ASKED))

    async def _signal(self, connection: Connection, name: str, message: Message) -> None:
        async with self.store.write() as tx:
            now = self.parts.clock.now()
            await tx.outbox.add(signal_message(TENANT, connection.id, name, message, now))
        self.parts.relay.notify()

    async def look_again(self, connection: Connection) -> None:
        """What its workflow hears when an admin has changed something."""
        changed = ProviderChanged(version=2, context=ASKED)
        await self.workflow(connection).signal(SignalName.PROVIDER_CHANGED, changed)

    async def ensure_fresh(
        self, connection: Connection, seen: int, limit_s: float = PATIENCE_S
    ) -> EnsureFreshResult:
        ask = EnsureFresh(seen_generation=seen, context=ASKED)
        return await self.parts.link.ensure_fresh(TENANT, connection.id, ask, timeout=limit_s)

    async def change(self, connection: Connection, **changes: Any) -> Connection:
        """Write fields of its row."""
        current = await self.row(connection)
        async with self.store.write() as tx:
            after = current.model_copy(update=changes)
            return await tx.connections.replace_names(after, expected=current.revision)

    async def change_integration(self, connection: Connection, **changes: Any) -> None:
        """What an admin's `PUT` writes."""
        current = await self.integration_of(connection)
        async with self.store.write() as tx:
            await tx.integrations.put(current.model_copy(update=changes), None, expected=current.revision)

    async def install(self, grant: Grant, tokens: TokenSet, after: Connection, origin: Origin) -> None:
        """A grant that no provider gave just now."""
        expected, hosts = (await self.row(after)).revision, pinned_hosts(await self.integration_of(after))
        async with self.store.write() as tx:
            await tx.grants.install(after, tokens, grant, origin=origin, expected=expected, hosts=hosts)

    async def restore(self, backup: tuple[Connection, Grant]) -> None:
        """Put an older row back, as restoring the database would."""
        tokens = TokenSet(access_token=Secret("an-old-token"), refresh_token=Secret("a-spent-token"))
        await self.install(backup[1], tokens, backup[0], Origin.NEW)

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

    async def define(self, document: dict[str, Any], **changes: Any) -> Definition:
        """A definition of the tenant's own: version 1, and active, unless `changes` say otherwise."""
        definition = a_definition(TENANT, document, self.parts.clock.now(), **changes)
        async with self.store.write() as tx:
            await tx.definitions.add(definition)
        return definition

    def document(self, **more: Any) -> dict[str, Any]:
        """A definition of the tenant's own whose endpoints are the provider's. `more` is put over it."""
        return {
            "name": f"acme-{new_id('def')[-6:]}",
            "display_name": "Acme",
            "auth_modes": ["authorization_code"],
            "authorization_endpoint": self.idp.url("authorize"),
            "token_endpoint": self.idp.url("token"),
            "refresh_rotates": True,
            **more,
        }

    async def integration_with(self, document: dict[str, Any], **changes: Any) -> Integration:
        """An integration at a provider of the tenant's own definition."""
        await self.define(document)
        rules = ProviderSpec.model_validate(document).refresh_rules()
        said = {"provider": document["name"], "endpoints": None, "issuer": None, **changes}
        return await self.integration(rules, **said)

    async def terminate(self, connection: Connection) -> None:
        """End its run by hand."""
        await self.workflow(connection).terminate("by hand")

    @asynccontextmanager
    async def api(self) -> AsyncIterator[httpx2.AsyncClient]:
        """The API over HTTP, and a caller who may do everything."""
        headers = {"Authorization": f"Bearer {await admin_key(self.parts)}"}
        async with (
            serving(self.parts.settings) as url,
            httpx2.AsyncClient(base_url=url, trust_env=False, timeout=PATIENCE_S, headers=headers) as http,
        ):
            yield http


async def admin_key(parts: Platform) -> str:
    """The API key of an app that may do everything."""
    everything = {"name": "all", "integration": "*", "actions": tuple(Action)}
    async with parts.store.write() as tx:
        return await put_app(tx, TENANT, "admin", parts.clock.now(), everything)


async def prepared(
    temporal_address: str, database_url: str, data_dir: Path, allow: tuple[str, ...], **more: Any
) -> Settings:
    """Keys, schema and settings of an installation with a task queue of its own, unless one is named."""
    more.setdefault("relay_interval", timedelta(seconds=0.2))  # no relay of this process is notified
    more.setdefault("allow_unbound_consent", True)
    more.setdefault("introspection_interval", timedelta(days=24 * 365))
    more.setdefault("temporal_task_queue", f"evergrant-{new_id('out')[-8:]}")
    settings = SettingsOfTest(
        data_dir=data_dir,
        database_url=database_url,
        temporal_address=temporal_address,
        egress_allow=allow,
        **more,
    )
    if not settings.key_path.exists():
        KeyRing.create(settings.key_path)
    await schema.upgrade(settings.database_url)
    return settings


@asynccontextmanager
async def running_worker(
    settings: Settings, limits: TimeLimits = LIMITS, *, with_schedules: bool = False
) -> AsyncIterator[None]:
    """A worker in this process, for the length of a block."""
    stop = asyncio.Event()
    task = asyncio.create_task(worker.run(settings, stop, limits, with_schedules=with_schedules))
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
    idp: ScriptedProvider | None = None,
    *,
    allow: tuple[str, ...] = (),
    limits: TimeLimits = LIMITS,
    with_worker: bool = True,
    **more: Any,
) -> AsyncIterator[Installation]:
    """`allow` names who may be called besides `idp`; `more` are settings.

    Without a worker the test is the only one that runs activities. Its worker declares the schedules where
    `more` says how often they begin: four of them are two thirds of Temporal's work for a connection.
    """
    allow = (*allow, idp.allowance) if idp else allow
    settings = await prepared(temporal_address, database_url, data_dir, allow, **more)
    recurring = {"with_schedules": "reconcile_interval" in more}
    work = running_worker(settings, limits, **recurring) if with_worker else nullcontext()
    async with open_platform(settings, Role.OPERATOR) as parts, work:
        yield Installation(parts, idp, with_worker=with_worker)
