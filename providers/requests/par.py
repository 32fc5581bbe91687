"""Pushed authorization requests and their replies (RFC 9126). Pure.

The parameters are sent to the provider with client authentication; the browser carries only a
reference that works once and expires soon.
"""

import re
from datetime import datetime, timedelta
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from evergrant_server.core.connections.consent import PushedAuthorization
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints, Integration
from evergrant_server.core.provider_words import with_code
from evergrant_server.core.text import json_type
from providers.definition.schema import ProviderSpec
from providers.requests.request_format import ProviderAccess, ProviderRequest
from providers.responses.error_mapping import (
    error_name,
    failure_of_reply,
    reply_fields,
    unreadable_reply,
)
from providers.responses.raw_reply import RawReply, UnreadableBody

_REQUEST_URI = re.compile(r"[\x21-\x7e]{1,2048}")
_MAX_LIFETIME_S = 3600.0


def requires_par(spec: ProviderSpec, endpoints: Endpoints) -> bool:
    """Whether the provider accepts only pushed requests (RFC 9126 section 5)."""
    return spec.require_pushed_authorization_requests or endpoints.pushed_requests_required


def uses_par(spec: ProviderSpec, endpoints: Endpoints) -> bool:
    """Whether the request is pushed, which it is wherever the endpoint is known.

    Raises Failure CLIENT_REJECTED where the provider requires it and the endpoint is unknown.
    """
    if endpoints.pushed_authorization_request_endpoint is not None:
        return True
    if requires_par(spec, endpoints):
        detail = f"{spec.name} requires pushed requests, and their endpoint is unknown"
        field = "pushed_authorization_request_endpoint"
        raise Failure(ErrorCode.CLIENT_REJECTED, detail, provider=spec.name, field=field)
    return False


def par_fields(url: str, authorization_endpoint: str) -> tuple[tuple[str, str], ...]:
    """The parameters of an authorization URL, without those of the endpoint itself."""
    fixed = parse_qsl(urlsplit(authorization_endpoint).query, keep_blank_values=True)
    query = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    return tuple(pair for pair in query if pair not in fixed)


def par_request(provider: ProviderAccess, fields: tuple[tuple[str, str], ...]) -> ProviderRequest:
    """The pushed request (RFC 9126 section 2.1), authenticated as a token request is."""
    url = provider.endpoints.pushed_authorization_request_endpoint
    if url is None:
        detail = f"{provider.spec.name} no longer has an endpoint for pushed requests"
        raise Failure(ErrorCode.CLIENT_REJECTED, detail)
    names = [name for name, _ in fields]
    once = {name: value for name, value in fields if names.count(name) == 1}
    repeated = tuple(pair for pair in fields if pair[0] not in once)  # RFC 8707: several resources
    return ProviderRequest(url, once, repeated, auth=provider.client.auth)


def read_par_reply(spec: ProviderSpec, reply: RawReply, now: datetime) -> PushedAuthorization:
    """The reference (RFC 9126 section 2.2), which expires `expires_in` after `now`.

    Raises Failure CLIENT_REJECTED, PROVIDER_ERROR, PROVIDER_RATE_LIMITED or REPLY_UNREADABLE.
    """
    error = error_name(spec, reply)
    if reply.status not in (200, 201) or error is not None:  # the RFC says 201; some servers send 200
        failure = failure_of_reply(spec, reply, error, now)
        if failure.code is ErrorCode.GRANT_REJECTED:  # a pushed request involves no grant
            failure = with_code(failure, ErrorCode.CLIENT_REJECTED)
        raise failure
    data = reply_fields(spec, reply)
    try:
        reference, expires_in = data.get("request_uri"), data.get("expires_in")
        if not isinstance(reference, str) or not _REQUEST_URI.fullmatch(reference):
            raise UnreadableBody(
                f"a request_uri that is {json_type(reference)}, or has invalid characters or length"
            )
        if isinstance(expires_in, bool) or not isinstance(expires_in, int | float) or not expires_in > 0:
            raise UnreadableBody(f"an expires_in that is {json_type(expires_in)}, or not positive")
    except UnreadableBody as why:
        raise unreadable_reply(spec, reply, str(why)) from None
    expires_at = now + timedelta(seconds=min(expires_in, _MAX_LIFETIME_S))
    return PushedAuthorization(request_uri=reference, expires_at=expires_at)


def par_authorization_url(
    spec: ProviderSpec, integration: Integration, endpoint: str, request_uri: str
) -> str:
    """The authorization URL with the reference and the client id only (RFC 9126 section 4)."""
    name = spec.authorization_client_id_param or spec.client_id_param
    parts = urlsplit(endpoint)
    query = [
        *parse_qsl(parts.query, keep_blank_values=True),
        (name, integration.client_id),
        ("request_uri", request_uri),
    ]
    encoded = urlencode(query, quote_via=quote)
    return urlunsplit((*parts[:3], encoded, spec.authorization_url_fragment or ""))
