"""`/v1/oauth-clients`: OAuth clients that an admin registers, lists, turns off and deletes."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import Field

from evergrant_server.access.approvals import dangerous, use_approval
from evergrant_server.api.http.call import AdminCall, AuditorCall
from evergrant_server.api.http.models import Body, Page, PageCursor, PageLimit, View
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.ids import OAuthClientId, Tenant, new_id
from evergrant_server.core.oauth.client_metadata import MetadataRefused, read_client_metadata
from evergrant_server.core.oauth.clients import ClientAuthMethod, ClientKind, GatewayClient
from evergrant_server.crypto.client_assertions import public_key_set
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction

router = APIRouter(tags=["clients"])


class OAuthClientBody(Body):
    """A client that an admin answers for. `jwks`, its public keys, make it prove them at the token endpoint
    (`private_key_jwt`); without it is a public client with PKCE. Of redirect URIs any scheme is accepted but
    those that browsers open themselves."""

    name: Annotated[str, Field(min_length=1, max_length=80)]
    redirect_uris: Annotated[tuple[Annotated[str, Field(max_length=2000)], ...], Field(min_length=1)]
    jwks: dict[str, Any] | None = None


class OAuthClientSwitchBody(Body):
    """What isn't named beside `disabled` stays as it is. Only a client that an admin made has another name,
    other redirect URIs or other keys by this; its people are asked again then."""

    disabled: bool
    name: Annotated[str, Field(min_length=1, max_length=80)] | None = None
    redirect_uris: (
        Annotated[tuple[Annotated[str, Field(max_length=2000)], ...], Field(min_length=1)] | None
    ) = None
    jwks: dict[str, Any] | None = None


class OAuthClientView(View):
    """`kind`: `registered` by itself, a metadata `document`, or made by an `admin`."""

    id: str
    client_id: str
    kind: ClientKind
    name: str
    redirect_uris: tuple[str, ...]
    application_type: str
    auth_method: ClientAuthMethod
    disabled: bool
    created_at: datetime
    used_at: datetime | None


@router.post("/v1/oauth-clients", status_code=201)
@dangerous("always: persons let the client in as one that an admin answers for")
async def create_oauth_client(body: OAuthClientBody, call: AdminCall) -> OAuthClientView:
    """Register an OAuth client for the persons of this tenant. Give its `client_id` to the client."""
    metadata = _metadata(body.name, body.redirect_uris, body.jwks)
    id = OAuthClientId(new_id("cli"))
    client = GatewayClient(
        tenant=call.tenant,
        id=id,
        client_id=id,
        kind=ClientKind.ADMIN,
        created_at=call.now,
        **metadata,
    )

    async def write(tx: Transaction) -> None:
        approved = await use_approval(tx, call, body)
        await tx.oauth_clients.add(client)
        detail = {"name": client.name, "kind": client.kind, "redirect_uris": list(client.redirect_uris)}
        await call.record(tx, AuditAction.OAUTH_CLIENT_PUT, client.id, **detail, **approved)

    await call.write(write)
    return OAuthClientView.of(client)


@router.get("/v1/oauth-clients")
async def list_oauth_clients(
    call: AuditorCall, limit: PageLimit = 50, cursor: PageCursor = None
) -> Page[OAuthClientView]:
    """The tenant's clients, and in the installation's own tenant those that registered themselves."""
    listing = call.listing("oauth-clients", limit, cursor)
    async with call.api.store.read() as tx:
        clients = await tx.oauth_clients.page(call.tenant, listing.after, listing.most)
    views = [OAuthClientView.of(client) for client in clients]
    return listing.page(views, clients, lambda client: client.id)


@router.get("/v1/oauth-clients/{oauth_client_id}")
async def get_oauth_client(oauth_client_id: str, call: AuditorCall) -> OAuthClientView:
    async with call.api.store.read() as tx:
        return OAuthClientView.of(await _to_change(tx, call.tenant, oauth_client_id))


@router.put("/v1/oauth-clients/{oauth_client_id}")
@dangerous("to turn a client on again, and each change of an admin's client")
async def switch_oauth_client(
    oauth_client_id: str, body: OAuthClientSwitchBody, call: AdminCall
) -> OAuthClientView:
    """Turn a client off, or on again: its tokens count no more while it is off. Or change one of an admin."""

    async def write(tx: Transaction) -> GatewayClient:
        before = await _to_change(tx, call.tenant, oauth_client_id)
        described = _described(before, body)
        client = described.__replace__(disabled=body.disabled)
        if client == before:
            return before
        approved: dict[str, str] = {}
        if described != before or not body.disabled:
            facts = before.model_dump(mode="json", include={"id", "revision", "name", "redirect_uris"})
            approved = await use_approval(tx, call, body, {"client": facts})
        after = await tx.oauth_clients.replace(client, expected=before.revision)
        if described != before:
            await tx.client_consents.forget(client.client_id)
        await tx.token_families.judge_again(client.client_id)
        detail = {"name": client.name, "kind": client.kind, "disabled": body.disabled}
        if described != before:
            detail["redirect_uris"] = list(client.redirect_uris)
        await call.record(tx, AuditAction.OAUTH_CLIENT_PUT, client.id, **detail, **approved)
        return after

    return OAuthClientView.of(await call.write(write))


@router.delete("/v1/oauth-clients/{oauth_client_id}", status_code=204)
async def delete_oauth_client(oauth_client_id: str, call: AdminCall) -> Response:
    """Delete a client. Its tokens count no more, and its people are asked again; one that registers itself
    again is another client."""

    async def write(tx: Transaction) -> None:
        client = await _to_change(tx, call.tenant, oauth_client_id)
        await tx.oauth_clients.delete(client)
        await tx.client_consents.forget(client.client_id)
        await tx.token_families.judge_again(client.client_id)
        detail = {"name": client.name, "kind": client.kind}
        await call.record(tx, AuditAction.OAUTH_CLIENT_DELETED, client.id, **detail)

    await call.write(write)
    return Response(status_code=204)


async def _to_change(tx: Transaction, tenant: Tenant, id: str) -> GatewayClient:
    """The client as its row says, with a broken authenticator too: a change repairs that."""
    return require_found(await tx.oauth_clients.to_change(tenant, OAuthClientId(id)))


def _described(client: GatewayClient, body: OAuthClientSwitchBody) -> GatewayClient:
    """The client with what the body says of it. Raises Failure INVALID_REQUEST."""
    if body.name is None and body.redirect_uris is None and body.jwks is None:
        return client
    if client.kind is not ClientKind.ADMIN:
        why = "What this client says of itself is its own: turn it off, or delete it."
        raise invalid_request("name", f"name: {why}")
    members = {"name": body.name, "redirect_uris": body.redirect_uris, "jwks": body.jwks}
    kept = {name: getattr(client, name) for name, value in members.items() if value is None}
    return client.__replace__(**_metadata(**{**members, **kept}))


def _metadata(name: str, redirect_uris: Sequence[str], jwks: dict[str, Any] | None) -> dict[str, Any]:
    """What is kept of a client that an admin describes. Raises Failure INVALID_REQUEST."""
    members: dict[str, Any] = {"client_name": name, "redirect_uris": list(redirect_uris)}
    if jwks is not None:
        members |= {"jwks": jwks, "token_endpoint_auth_method": ClientAuthMethod.PRIVATE_KEY_JWT.value}
    try:
        metadata = read_client_metadata(members, public_key_set, any_scheme=True)
    except MetadataRefused as refused:
        field = "redirect_uris" if refused.error == "invalid_redirect_uri" else "jwks"
        raise invalid_request(field, f"{refused.description}.") from None
    kept = ("name", "redirect_uris", "application_type", "auth_method", "jwks")
    return {member: getattr(metadata, member) for member in kept}
