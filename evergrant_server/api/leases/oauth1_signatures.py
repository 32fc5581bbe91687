"""`POST /v1/connections/{id}/signatures`: signs a request with an OAuth 1.0a token (RFC 5849 section 3).

An OAuth 1.0a connection has no bearer token to lease. A signature takes the path of a lease: the
same permit, freshness and committed audit record.
"""

import re
from typing import Annotated, Self
from urllib.parse import parse_qsl, urlsplit

from fastapi import APIRouter, Depends, Response
from pydantic import Field, model_validator

from evergrant_server.access.context import ApiContext, integration_spec
from evergrant_server.access.decision import IssuedLease, LeaseIssuer
from evergrant_server.access.refusals import LeaseRequest, comparable_location
from evergrant_server.api.http.call import ApiCall, Call
from evergrant_server.api.http.models import Body, View, request_url
from evergrant_server.core.access import Action
from evergrant_server.core.connections.credentials import TokenPair
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.problems import invalid_request
from providers.definition.templates import client_auth_of
from providers.oauth1.flow import oauth1_endpoints, oauth1_spec
from providers.oauth1.signing import oauth1_authorization_header, require_signable
from providers.requests.request_format import OAuthClient

router = APIRouter(tags=["leases"])

_METHOD = re.compile(r"[A-Z]{1,20}")
_FormText = Annotated[str, Field(max_length=16_384)]


class SignatureBody(Body):
    """The request to sign. `form` has the names and values of a form body in order; other bodies are
    not signed (RFC 5849 section 3.4.1.3.1)."""

    method: Annotated[str, Field(max_length=20)]
    url: Annotated[str, Field(max_length=8192)]
    form: Annotated[tuple[tuple[_FormText, _FormText], ...], Field(max_length=500)] = ()

    @model_validator(mode="after")
    def _is_a_request(self) -> Self:
        if not _METHOD.fullmatch(self.method):
            raise ValueError("method has upper-case letters only")
        if urlsplit(request_url(self.url)).scheme != "https":
            raise ValueError("url must be https")
        theirs = [*parse_qsl(urlsplit(self.url).query, keep_blank_values=True), *self.form]
        if any(name.startswith("oauth_") for name, _ in theirs):
            raise ValueError("a request to sign can't have oauth_ parameters")
        return self

    @property
    def audit_text(self) -> str:
        """Method and URL for the audit log, without the query, which may hold secrets."""
        parts = urlsplit(self.url)
        return f"{self.method} {parts.scheme}://{parts.netloc}{parts.path}"


class SignatureView(View):
    """Headers to send the request with. They are valid for this request, for some minutes. `audit` is the
    place of the audit record."""

    headers: dict[str, str]
    generation: int
    connection_id: str
    audit: str


async def _require_visible(connection_id: str, call: Call) -> None:
    """Check visibility before the body: an invisible connection answers 404 to any body."""
    async with call.api.store.read() as tx:
        await call.visible_connection(tx, connection_id, Action.TOKEN)


@router.post("/v1/connections/{connection_id}/signatures", dependencies=[Depends(_require_visible)])
async def sign_request(
    connection_id: str, body: SignatureBody, response: Response, call: Call
) -> SignatureView:
    """Sign one request with a connection's token (OAuth 1.0a, RFC 5849 section 3)."""
    await _require_no_provider_endpoint(call, connection_id, body.url)
    ask = LeaseRequest(ConnectionId(connection_id), signs=body.audit_text)
    issuer: LeaseIssuer = call.request.app.state.lease_issuer
    lease = await issuer.issue(call.request, ask, (call.caller, False))
    response.headers["Cache-Control"] = "no-store"
    header = await _authorization_header(call.api, lease, body)
    return SignatureView(
        headers={"Authorization": header},
        generation=lease.row.generation,
        connection_id=lease.row.connection_id,
        audit=lease.place,
    )


async def _require_no_provider_endpoint(call: ApiCall, connection_id: str, url: str) -> None:
    """Raise Failure INVALID_REQUEST for the provider's OAuth endpoints: a signature uses the client's
    secret, and an app could take part in another subject's consent (RFC 5849 sections 2.1 and 2.3)."""
    async with call.api.store.read() as tx:
        connection = await call.visible_connection(tx, connection_id, Action.TOKEN)
        integration = await tx.integrations.get(connection.tenant, connection.integration_id)
        spec = None if integration is None else await integration_spec(tx, call.api.registry, integration)
    if integration is None or spec is None or spec.request_token_endpoint is None:
        return  # not an OAuth 1.0a connection: refused later
    endpoints = oauth1_endpoints(spec, integration)
    if comparable_location(url) in {
        comparable_location(endpoint)
        for endpoint in (endpoints.temporary, endpoints.authorization, endpoints.token)
    }:
        detail = "No request to an endpoint of the provider's authorization server is signed."
        raise invalid_request("url", detail)


async def _authorization_header(api: ApiContext, lease: IssuedLease, body: SignatureBody) -> str:
    """Open the seals and sign. The audit record is committed (docs/architecture.md, rule 8)."""
    row = lease.row
    async with api.store.read() as tx:
        integration = await tx.integrations.get(row.tenant, row.integration_id)
        if integration is None:
            raise Failure(ErrorCode.CLIENT_REJECTED, f"the integration {row.integration} was deleted")
        spec = await integration_spec(tx, api.registry, integration)
        secret = await tx.integrations.client_secret(integration)
        key = await tx.integrations.client_key(integration)
    rule = oauth1_spec(spec)
    require_signable(rule.signature_method)
    return oauth1_authorization_header(
        OAuthClient(integration.client_id, secret, client_auth_of(spec, integration), key),
        rule.signature_method,
        body.method,
        body.url,
        at=api.clock.now(),
        pair=TokenPair.from_secret(lease.open_access_token(api.ring)),
        form=body.form,
        realm=rule.realm,
    )
