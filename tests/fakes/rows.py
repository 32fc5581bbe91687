"""Rows as the API writes them, for tests that put them into a store themselves. `changes` are fields."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2

from evergrant_server.access.credentials import new_key
from evergrant_server.core.access import App, AuthenticationMethod, Permit
from evergrant_server.core.agents.delegations import Delegation
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.connections.pinned_hosts import NOTHING_PINNED, PinnedHosts
from evergrant_server.core.decisions import Approval
from evergrant_server.core.definition import Definition, DefinitionState
from evergrant_server.core.ids import AppId, AttemptId, ConnectionId, Tenant, new_id
from evergrant_server.core.integrations import Endpoints, Integration
from evergrant_server.core.messages.connection import ConnectionDescription
from evergrant_server.core.oauth.authorizations import TokenFamily
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.attempt import Attempt, AttemptKind, AttemptOutcome
from evergrant_server.store import Store, Transaction
from providers.definition.registry import Registry
from providers.definition.schema import ProviderSpec
from providers.requests.authorization_url import build_authorization_url, new_random_value
from providers.requests.hosts import hosts_to_pin
from tests.fakes.providers.scripted_provider import ScriptedProvider


def an_integration(tenant: Tenant, at: datetime, /, **changes: Any) -> Integration:
    values: dict[str, Any] = {
        "tenant": tenant,
        "id": new_id("int"),
        "name": "crm",
        "provider": "generic",
        "client_id": "client-1",
        "default_scopes": ("read",),
        "binding": "none",
        "created_at": at,
        "changed_at": at,
        **changes,
    }
    return Integration(**values)


def discovered(idp: ScriptedProvider) -> dict[str, Any]:
    """What an integration holds of this server once its metadata has been read."""
    endpoints = Endpoints(
        issuer=idp.issuer,
        authorization_endpoint=idp.url("authorize"),
        token_endpoint=idp.url("token"),
        revocation_endpoint=idp.url("revoke"),
    )
    return {"client_id": idp.client_id, "issuer": idp.issuer, "endpoints": endpoints}


def pinned_hosts(integration: Integration) -> PinnedHosts:
    """What a grant pins that was made at the endpoints that were read."""
    spec = Registry.load().get("generic")
    return hosts_to_pin(spec, integration.model_copy(update={"params": {}}), {}, NOTHING_PINNED)


def a_connection(integration: Integration, at: datetime, /, **changes: Any) -> Connection:
    """One whose subject hasn't consented yet."""
    values: dict[str, Any] = {
        "tenant": integration.tenant,
        "id": new_id("con"),
        "integration_id": integration.id,
        "integration": integration.name,
        "provider": integration.provider,
        "subject": "user-1",
        "requested_scopes": ("read",),
        "created_at": at,
        "changed_at": at,
        "consent_deadline": at + timedelta(hours=1),
        **changes,
    }
    return Connection(**values)


def a_consent(connection: Connection, at: datetime, /, **changes: Any) -> Consent:
    values: dict[str, Any] = {
        "tenant": connection.tenant,
        "id": new_id("cns"),
        "connection_id": connection.id,
        "integration_id": connection.integration_id,
        "status": ConsentStatus.STARTED,
        "scopes": ("read",),
        "link_hash": new_id("cns"),
        "created_at": at,
        "expires_at": at + timedelta(hours=1),
        "by": "subject",
        "trace_id": "",
        **changes,
    }
    return Consent(**values)


async def add_first_consent(tx: Transaction, connection: Connection, app: AppId) -> None:
    """The consent of this app that brought the connection's grant."""
    about = {"app_id": app, "status": ConsentStatus.DONE}
    await tx.consents.add(a_consent(connection, connection.created_at, **about), None)


def a_description(connection_id: ConnectionId, **facts: Any) -> ConnectionDescription:
    """What a workflow says of itself; it knows nothing of what isn't among `facts`."""
    unknown = dict.fromkeys(ConnectionDescription.model_fields)
    known = {"connection_id": connection_id, "failures": 0, "waiting_callers": (), **facts}
    return ConnectionDescription.model_validate(unknown | known)


def a_definition(tenant: Tenant, document: Mapping[str, Any], at: datetime, **changes: Any) -> Definition:
    """Version 1 of a tenant's own, and active, unless `changes` say otherwise."""
    values: dict[str, Any] = {
        "tenant": tenant,
        "id": new_id("def"),
        "name": document["name"],
        "version": 1,
        "document": document,
        "state": DefinitionState.ACTIVE,
        "share": 1.0,
        "proposed_by": "app:crm-sync",
        "created_at": at,
        "changed_at": at,
        **changes,
    }
    return Definition(**values)


async def add_refresh(tx: Transaction, connection: Connection, at: datetime, outcome: AttemptOutcome) -> None:
    """An attempt of then to refresh the connection, and how it ended."""
    attempt = Attempt(
        tenant=connection.tenant,
        id=AttemptId(new_id("att")),
        connection_id=connection.id,
        integration_id=connection.integration_id,
        kind=AttemptKind.REFRESH,
        from_generation=connection.generation,
        journal_id="",
        opened_at=at,
        send_by=at,
    )
    await tx.attempts.open(attempt)
    await tx.attempts.close(attempt, outcome, at)


def token_set(reply: Mapping[str, Any], **changes: Any) -> TokenSet:
    """A server's reply, read."""
    refresh = reply.get("refresh_token")
    values: dict[str, Any] = {
        "access_token": Secret(reply["access_token"]),
        "refresh_token": Secret(refresh) if refresh else None,
        "expires_in": reply.get("expires_in"),
        **changes,
    }
    return TokenSet(**values)


async def put_app(
    tx: Transaction,
    tenant: Tenant,
    name: str,
    at: datetime,
    permit: Mapping[str, Any] | None = None,
    **more: Any,
) -> str:
    """An app with one permit, or none. Returns its key."""
    await tx.tenants.begin(tenant)
    facts: dict[str, Any] = {"tenant": tenant, "id": new_id("app"), "name": name, "created_at": at, **more}
    app = await tx.access.put_app(App(**facts), expected=None)
    key, shown = new_key(tx.sealer.ring, app, at, timedelta(days=3650))
    await tx.access.add_key(key)
    if permit is not None:
        owned: dict[str, Any] = {"tenant": tenant, "app_id": app.id, "created_at": at}
        await tx.access.put_permit(Permit(id=new_id("per"), **owned, **permit), expected=None)
    return shown


async def disable_tenant(tx: Transaction, tenant: Tenant) -> None:
    """What the operator's command does, without its record."""
    standing = await tx.tenants.get(tenant, tenant)
    assert standing is not None
    await tx.tenants.put(standing.model_copy(update={"disabled": True}), expected=standing.revision)


def an_approval(app: App, at: datetime, **changes: Any) -> Approval:
    """One of a command that waits for its second admin."""
    values: dict[str, Any] = {
        "tenant": app.tenant,
        "id": new_id("apr"),
        "app_id": app.id,
        "by": f"app:{app.name}",
        "command": "POST /v1/apps/pipeline/keys",
        "body": None,
        "created_at": at,
        "expires_at": at + timedelta(days=1),
        **changes,
    }
    return Approval(**values)


def a_family(app: App, subject: str, at: datetime, **changes: Any) -> TokenFamily:
    """The tokens of a client that acts as the app."""
    values: dict[str, Any] = {
        "tenant": app.tenant,
        "id": new_id("fam"),
        "client_id": "cli_0000000000000000000000",
        "app_id": app.id,
        "subject": subject,
        "resource": "https://gateway.example/mcp",
        "scopes": ("mcp",),
        "bound": False,
        "created_at": at,
        "used_at": at,
        "expires_at": at + timedelta(days=30),
        **changes,
    }
    return TokenFamily(**values)


def a_delegation(app: App, key_id: str, subject: str, at: datetime, **changes: Any) -> Delegation:
    """The root of a tree: the app acts for the subject."""
    id = new_id("dlg")
    values: dict[str, Any] = {
        "tenant": app.tenant,
        "id": id,
        "path": (id,),
        "app_id": app.id,
        "key_id": key_id,
        "method": AuthenticationMethod.API_KEY,
        "subject": subject,
        "secret_hash": "",
        "created_at": at,
        "expires_at": at + timedelta(hours=1),
        **changes,
    }
    return Delegation(**values)


async def add_code(
    store: Store, spec: ProviderSpec, integration: Integration, consent: Consent, browser: httpx2.AsyncClient
) -> Consent:
    """Go where the browser is sent, and keep the code that the scripted server gives by itself."""
    verifier = new_random_value()
    assert consent.redirect_uri is not None
    url = build_authorization_url(
        spec,
        integration,
        redirect_uri=consent.redirect_uri,
        state=new_random_value(),
        verifier=verifier,
        scopes=("read",),
        slot_scopes=consent.slot_scopes,
    )
    answer = await browser.get(url)
    code = dict(parse_qsl(urlsplit(answer.headers["location"]).query))["code"]
    async with store.write() as tx:
        await tx.consents.add(consent, Secret("link"))
        received = consent.model_copy(update={"status": ConsentStatus.CODE_RECEIVED})
        return await tx.consents.replace(received, expected=1, verifier=verifier, code=Secret(code))
