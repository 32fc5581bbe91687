"""Values of core to put into a store."""

from datetime import timedelta
from typing import Any, TypeVar

from pydantic import BaseModel

from evergrant_server.core.access import App, AppKey, Permit
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.connections.grant import Grant, Origin, TokenSet
from evergrant_server.core.ids import Tenant, new_id
from evergrant_server.core.integrations import Integration
from evergrant_server.core.outbox import OutboxKind, OutboxMessage
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.attempt import Attempt, AttemptKind
from evergrant_server.store import Store
from tests.fakes import rows
from tests.fakes.databases import NOW

ACME = Tenant("acme")
Built = TypeVar("Built", bound=BaseModel)


def built(model: type[Built], changes: dict[str, Any], **values: Any) -> Built:
    return model(**{"tenant": ACME, "created_at": NOW, "changed_at": NOW, **values, **changes})


def an_integration(**changes: Any) -> Integration:
    names = {"name": "github", "provider": "github", "default_scopes": ("repo",)}
    return rows.an_integration(ACME, NOW, **{**names, **changes})


GITHUB = an_integration(id="int_0000000000000000000000")


def a_connection(**changes: Any) -> Connection:
    return rows.a_connection(GITHUB, NOW, **{"requested_scopes": ("repo", "user"), **changes})


def some_tokens(access: str = "at-1", refresh: str | None = "rt-1", id_token: str | None = None) -> TokenSet:
    return TokenSet(
        access_token=Secret(access),
        refresh_token=None if refresh is None else Secret(refresh),
        id_token=None if id_token is None else Secret(id_token),
        expires_in=3600,
    )


def a_grant(generation: int, **changes: Any) -> Grant:
    values: dict[str, Any] = {
        "generation": generation,
        "scopes": ("repo",),
        "obtained_at": NOW,
        "expires_at": NOW + timedelta(hours=1),
        "refreshable": True,
        "metadata": {"team": {"id": 7}},
    }
    return Grant(**{**values, **changes})


async def added(store: Store, connection: Connection) -> Connection:
    async with store.write() as tx:
        await tx.connections.add(connection)
    return connection


async def granted(store: Store, **changes: Any) -> Connection:
    """A connection that holds generation 1: at-1 and rt-1."""
    connection = await added(store, a_connection(**changes))
    return await refreshed(store, connection, some_tokens(id_token="it-1"), Origin.NEW)


async def refreshed(
    store: Store, connection: Connection, tokens: TokenSet, origin: Origin = Origin.REFRESH
) -> Connection:
    after = connection.granted(NOW)
    async with store.write() as tx:
        return await tx.grants.install(
            after, tokens, a_grant(after.generation), origin=origin, expected=connection.revision
        )


def an_app(**changes: Any) -> App:
    return built(App, changes, id=new_id("app"), name="billing")


async def an_app_of(store: Store, **changes: Any) -> App:
    app = an_app(**changes)
    async with store.write() as tx:
        await tx.tenants.begin(app.tenant)
        return await tx.access.put_app(app, expected=None)


def a_key(app: App, **changes: Any) -> AppKey:
    facts = {"tenant": app.tenant, "app_id": app.id, "expires_at": NOW + timedelta(days=90)}
    return built(AppKey, changes, id=new_id("key"), secret_hash="f" * 64, **facts)


def a_permit(app: App, **changes: Any) -> Permit:
    names = {"tenant": app.tenant, "app_id": app.id, "name": "read", "integration": "github"}
    return built(Permit, changes, id=new_id("per"), actions=("token",), **names)


def a_consent(connection: Connection, **changes: Any) -> Consent:
    facts = {"status": ConsentStatus.OPEN, "scopes": (), "by": "app:billing", "trace_id": "0" * 32}
    return rows.a_consent(connection, NOW, **{**facts, **changes})


def an_attempt(connection: Connection, **changes: Any) -> Attempt:
    return built(
        Attempt,
        changes,
        tenant=connection.tenant,
        id=new_id("att"),
        connection_id=connection.id,
        kind=AttemptKind.REFRESH,
        from_generation=connection.generation,
        journal_id="journal-1",
        opened_at=NOW,
        send_by=NOW + timedelta(seconds=5),
    )


def a_message(target: str = "connection:acme:con_1", **changes: Any) -> OutboxMessage:
    facts = {"kind": OutboxKind.SIGNAL, "name": "revoke", "payload": {"reason": "asked"}}
    return built(OutboxMessage, changes, id=new_id("out"), target=target, **facts)
