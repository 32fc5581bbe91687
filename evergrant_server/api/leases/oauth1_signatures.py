"""`POST /v1/connections/{id}/signatures`: a request signed for an app, which never sees the secrets.

The token of an OAuth 1.0a connection is no bearer token, so there is nothing to lease. A signature
is asked for as a lease is: the same permit, the same freshness, the same record before it leaves.
"""

import re
from typing import Annotated, Self
from urllib.parse import parse_qsl, urlsplit

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field, model_validator

from evergrant_server.api.http.authentication import Caller
from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.dependencies import CallerDep, ContextDep, visible_connection
from evergrant_server.api.http.requests import Body, TokenBody, request_url
from evergrant_server.api.http.responses import View
from evergrant_server.api.integrations.definitions import integration_spec
from evergrant_server.api.leases.decision import LeaseIssuer
from evergrant_server.api.leases.dpop import comparable_location
from evergrant_server.api.leases.refusals import LeaseRequest
from evergrant_server.core.access import Action
from evergrant_server.core.connections.token_pair import TokenPair
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.store import LeaseRow
from providers.definition.templates import client_auth_of
from providers.oauth1.flow import oauth1_endpoints, oauth1_spec
from providers.oauth1.signing import oauth1_authorization_header, require_signable
from providers.requests.client import OAuthClient

router = APIRouter(tags=["leases"])

_METHOD = re.compile(r"[A-Z]{1,20}")
_FormText = Annotated[str, Field(max_length=16_384)]


class SignatureBody(Body):
    """A request that is about to be sent. `form` is its body where that is a form, as name and value
    in order; no other body is signed (RFC 5849 section 3.4.1.3.1)."""

    method: Annotated[str, Field(max_length=20)]
    url: Annotated[str, Field(max_length=8192)]
    form: Annotated[tuple[tuple[_FormText, _FormText], ...], Field(max_length=500)] = ()

    @model_validator(mode="after")
    def _is_a_request(self) -> Self:
        if not _METHOD.fullmatch(self.method):
            raise ValueError("method is upper case letters")
        if urlsplit(request_url(self.url)).scheme != "https":
            raise ValueError("url is https")
        theirs = [*parse_qsl(urlsplit(self.url).query, keep_blank_values=True), *self.form]
        if any(name.startswith("oauth_") for name, _ in theirs):
            raise ValueError("a request that is signed has no oauth_ parameters of its own")
        return self

    @property
    def audit_text(self) -> str:
        """What the audit log keeps of it: no query, which may hold anything."""
        parts = urlsplit(self.url)
        return f"{self.method} {parts.scheme}://{parts.netloc}{parts.path}"


class SignatureView(View):
    """Headers to send the request with. They are good for this request alone, and for minutes."""

    headers: dict[str, str]
    generation: int
    connection_id: str


async def _require_visible(connection_id: str, caller: CallerDep, parts: ContextDep) -> None:
    """Before the body is looked at: what an app may not see is not there, whatever it sends."""
    async with parts.store.read() as tx:
        await visible_connection(tx, caller, connection_id, Action.TOKEN)


@router.post("/v1/connections/{connection_id}/signatures", dependencies=[Depends(_require_visible)])
async def sign_request(
    request: Request,
    connection_id: str,
    body: SignatureBody,
    response: Response,
    caller: CallerDep,
    parts: ContextDep,
) -> SignatureView:
    """Sign one request with a connection's token (OAuth 1.0a, RFC 5849 section 3)."""
    await _require_no_provider_endpoint(parts, caller, connection_id, body.url)
    ask = LeaseRequest(TokenBody(), None, ConnectionId(connection_id), signs=body.audit_text)
    lease = await LeaseIssuer(parts).issue(request, ask, (caller, False))
    response.headers["Cache-Control"] = "no-store"
    header = await _authorization_header(parts, lease.row, body)
    return SignatureView(
        headers={"Authorization": header},
        generation=lease.row.generation,
        connection_id=lease.row.connection_id,
    )


async def _require_no_provider_endpoint(
    parts: ApiContext, caller: Caller, connection_id: str, url: str
) -> None:
    """Raise Failure INVALID_REQUEST for the provider's own endpoints: a signature has our client's secret
    in it, and an app could take part in somebody's consent with one (RFC 5849 sections 2.1 and 2.3)."""
    async with parts.store.read() as tx:
        connection = await visible_connection(tx, caller, connection_id, Action.TOKEN)
        integration = await tx.integrations.get(connection.tenant, connection.integration_id)
        spec = None if integration is None else await integration_spec(tx, parts.registry, integration)
    if integration is None or spec is None or spec.request_token_endpoint is None:
        return  # there will be nothing to sign
    there = oauth1_endpoints(spec, integration)
    if comparable_location(url) in {
        comparable_location(it) for it in (there.temporary, there.authorization, there.token)
    }:
        detail = "No request is signed for an endpoint of the provider's authorization server."
        raise Failure(ErrorCode.INVALID_REQUEST, detail, field="url")


async def _authorization_header(parts: ApiContext, row: LeaseRow, body: SignatureBody) -> str:
    """Open the seals. The signature is in the audit log by now (docs/architecture.md, rule 8)."""
    async with parts.store.read() as tx:
        integration = await tx.integrations.get(row.tenant, row.integration_id)
        if integration is None:
            raise Failure(ErrorCode.CLIENT_REJECTED, f"the integration {row.integration} was deleted")
        spec = await integration_spec(tx, parts.registry, integration)
        secret = await tx.integrations.client_secret(integration)
        key = await tx.integrations.client_key(integration)
    rule = oauth1_spec(spec)
    require_signable(rule.signature_method)
    return oauth1_authorization_header(
        OAuthClient(integration.client_id, secret, client_auth_of(spec, integration), key),
        rule.signature_method,
        body.method,
        body.url,
        at=parts.clock.now(),
        pair=TokenPair.from_secret(row.open_access_token(parts.ring)),
        form=body.form,
        realm=rule.realm,
    )
