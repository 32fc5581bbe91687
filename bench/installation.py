"""Prepares an installation: keys, schema, one app with a permit, connections with a grant."""

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from bench.load import HOST
from evergrant_server.access.credentials import new_key
from evergrant_server.core.access import Action, App, Permit
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import Grant, Origin, TokenSet
from evergrant_server.core.ids import AppId, ConnectionId, IntegrationId, PermitId, Tenant, new_id
from evergrant_server.core.integrations import (
    NOTHING_PINNED,
    Endpoints,
    Integration,
    PinnedHosts,
    RefreshRules,
)
from evergrant_server.core.secret import Secret
from evergrant_server.crypto.keyring import KeyRing, Role
from evergrant_server.settings import Settings, load_settings
from evergrant_server.store import Store, Transaction
from evergrant_server.store.database import schema
from providers.definition.registry import Registry
from providers.requests.hosts import hosts_to_pin

TENANT = Tenant("bench")
_CLOCK = SystemClock()
_SCOPES = ("read", "write")
_NO_RULES = RefreshRules()
_LIFETIME_S = 3600.0
_ROWS_AT_ONCE = 200


@dataclass(frozen=True)
class Installation:
    """What the measurements need of an installation. `key` is its app's API key; there is another app, and
    one with the action `admin`."""

    settings: Settings
    key: str
    app: App
    connections: tuple[Connection, ...]
    other_app: App
    other_key: str
    admin_key: str

    def requests(self, key: str | None = None) -> list[str]:
        """One lease request for each connection, as it is sent, with this key or the app's."""
        return [
            lease_request(self.settings.port, key or self.key, connection.subject)
            for connection in self.connections
        ]


def lease_request(port: int, key: str, subject: str) -> str:
    body = json.dumps({"integration": "crm", "subject": subject}, separators=(",", ":"))
    return (
        f"POST /v1/lease HTTP/1.1\r\nHost: {HOST}:{port}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    )


async def prepare(
    folder: Path,
    database_url: str,
    port: int,
    grants: list[dict[str, Any]],
    *,
    issuer: str = "https://crm.test",
    client_secret: str = "hush",
    refresh: RefreshRules = _NO_RULES,
    **settings: Any,
) -> Installation:
    """Prepare it. Each token reply in `grants` becomes one active connection."""
    loaded = load_settings(data_dir=folder, database_url=database_url, port=port, tenant=TENANT, **settings)
    KeyRing.create(loaded.key_path)
    await schema.upgrade(loaded.database_url)
    store = await Store.open(loaded.database_url, KeyRing.open(loaded.key_path, Role.WORKER), _CLOCK)
    try:
        async with store.write() as tx:
            await tx.tenants.begin(TENANT)
            app, key = await _app(tx, "pipeline")
            other_app, other_key = await _app(tx, "other")
            _, admin_key = await _app(tx, "admin", admin=True)
            integration = await tx.integrations.put(
                _integration(issuer, refresh), Secret(client_secret), expected=None
            )
            hosts = _hosts(integration)
            connections = [
                await _connection(tx, integration, number, reply, hosts)
                for number, reply in enumerate(grants)
            ]
    finally:
        await store.close()
    return Installation(loaded, key, app, tuple(connections), other_app, other_key, admin_key)


def token_reply() -> dict[str, Any]:
    """A token reply with an opaque access token of typical size."""
    return {"access_token": secrets.token_urlsafe(96), "refresh_token": secrets.token_urlsafe(32)}


async def populate(
    ready: Installation, numbers: range, grant: Callable[[], dict[str, Any]] = token_reply
) -> tuple[Connection, ...]:
    """Add connections of these numbers, each with a `grant`, sealed as a worker seals it."""
    settings = ready.settings
    store = await Store.open(settings.database_url, KeyRing.open(settings.key_path, Role.WORKER), _CLOCK)
    try:
        async with store.read() as tx:
            integration = await tx.integrations.by_name(TENANT, "crm")
        assert integration is not None
        hosts, added = _hosts(integration), list[Connection]()
        for first in range(numbers.start, numbers.stop, _ROWS_AT_ONCE):
            async with store.write() as tx:
                for number in range(first, min(first + _ROWS_AT_ONCE, numbers.stop)):
                    added.append(await _connection(tx, integration, number, grant(), hosts))
    finally:
        await store.close()
    return tuple(added)


async def _app(tx: Transaction, name: str, *, admin: bool = False) -> tuple[App, str]:
    now = _CLOCK.now()
    app = App(tenant=TENANT, id=AppId(new_id("app")), name=name, created_at=now)
    key, shown = new_key(tx.sealer.ring, app, now, timedelta(days=1))
    permit = Permit(
        tenant=TENANT,
        id=PermitId(new_id("per")),
        app_id=app.id,
        name="crm",
        integration="*" if admin else "crm",
        scope_ceiling=_SCOPES,
        actions=(Action.ADMIN,) if admin else (Action.TOKEN, Action.PROXY),
        created_at=now,
    )
    await tx.access.put_app(app, expected=None)
    await tx.access.add_key(key)
    await tx.access.put_permit(permit, expected=None)
    current = await tx.access.app(TENANT, app.id)
    assert current is not None
    return current, shown


def _integration(issuer: str, refresh: RefreshRules) -> Integration:
    now = _CLOCK.now()
    return Integration(
        tenant=TENANT,
        id=IntegrationId(new_id("int")),
        name="crm",
        provider="generic",
        client_id="client-1",
        issuer=issuer,
        default_scopes=_SCOPES,
        refresh=refresh,
        endpoints=Endpoints(
            issuer=issuer,
            authorization_endpoint=f"{issuer}/authorize",
            token_endpoint=f"{issuer}/token",
            revocation_endpoint=f"{issuer}/revoke",
        ),
        created_at=now,
        changed_at=now,
    )


def _hosts(integration: Integration) -> PinnedHosts:
    spec = Registry.load().get(integration.provider)
    return hosts_to_pin(spec, integration, integration.params, NOTHING_PINNED)


async def _connection(
    tx: Transaction, integration: Integration, number: int, reply: dict[str, Any], hosts: PinnedHosts
) -> Connection:
    now = _CLOCK.now()
    connection = Connection(
        tenant=TENANT,
        id=ConnectionId(new_id("con")),
        integration_id=integration.id,
        integration=integration.name,
        provider=integration.provider,
        subject=f"user-{number:04}",
        requested_scopes=_SCOPES,
        refresh_policy="on_demand",
        consent_deadline=now,
        created_at=now,
        changed_at=now,
    )
    await tx.connections.add(connection)
    tokens = TokenSet(
        access_token=Secret(reply["access_token"]),
        refresh_token=Secret(reply["refresh_token"]),
        expires_in=_LIFETIME_S,
        scopes=_SCOPES,
    )
    after = connection.granted(now)
    grant = Grant.from_tokens(tokens, generation=after.generation, requested=_SCOPES, at=now)
    return await tx.grants.install(
        after, tokens, grant, origin=Origin.NEW, expected=connection.revision, hosts=hosts
    )
