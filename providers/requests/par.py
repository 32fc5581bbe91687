"""Pushed authorization requests and their judge (RFC 9126). Pure.

What the browser would have carried is sent from here to there, with our client authentication;
the browser carries a reference that works once and soon ends.
"""

import re
from datetime import datetime, timedelta
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from evergrant_server.core.access import Endpoints, Integration
from evergrant_server.core.connections.pushed_authorization import Fields, PushedAuthorization
from evergrant_server.core.errors import ErrorCode, Failure
from providers.definition.schema import ProviderSpec
from providers.requests.client import OAuthClient
from providers.requests.client_grants import PreparedRequest
from providers.requests.wire import RequestFormat
from providers.responses.error_mapping import error_name, failure_of_reply, reply_fields, unreadable_reply
from providers.responses.json_paths import UnreadableBody, json_type
from providers.responses.raw_reply import RawReply

_REQUEST_URI = re.compile(r"[\x21-\x7e]{1,2048}")
_MAX_LIFETIME_S = 3600.0


def requires_par(spec: ProviderSpec, endpoints: Endpoints) -> bool:
    """Does the provider take no other request (RFC 9126 section 5)? Its definition or metadata says so."""
    return spec.require_pushed_authorization_requests or endpoints.pushed_requests_required


def uses_par(spec: ProviderSpec, endpoints: Endpoints) -> bool:
    """Is the request pushed? Wherever that can be done. Raises Failure CLIENT_REJECTED where it must be
    and the endpoint isn't known."""
    if endpoints.pushed_authorization_request_endpoint is not None:
        return True
    if requires_par(spec, endpoints):
        detail = f"{spec.name} takes pushed requests alone, and no endpoint for them is known"
        field = "pushed_authorization_request_endpoint"
        raise Failure(ErrorCode.CLIENT_REJECTED, detail, provider=spec.name, field=field)
    return False


def par_fields(url: str, authorization_endpoint: str) -> Fields:
    """The parameters of an authorization request, without those that are part of the endpoint."""
    standing = parse_qsl(urlsplit(authorization_endpoint).query, keep_blank_values=True)
    asked = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    return tuple(pair for pair in asked if pair not in standing)


def par_request(
    spec: ProviderSpec, endpoints: Endpoints, client: OAuthClient, fields: Fields
) -> PreparedRequest:
    """The request to the endpoint (RFC 9126 section 2.1): a form, authenticated as a token request is."""
    url = endpoints.pushed_authorization_request_endpoint
    if url is None:
        uses_par(spec, endpoints)
        raise Failure(ErrorCode.CLIENT_REJECTED, f"{spec.name} has lost its endpoint for pushed requests")
    names = [name for name, _ in fields]
    once = {name: value for name, value in fields if names.count(name) == 1}
    repeated = tuple(pair for pair in fields if pair[0] not in once)  # RFC 8707: several resources
    dialect = RequestFormat(
        auth=client.auth, extra_params=once, repeated_params=repeated, omitted_params=("grant_type",)
    )
    return PreparedRequest(url, "pushed", dialect)


def read_par_reply(spec: ProviderSpec, reply: RawReply, now: datetime) -> PushedAuthorization:
    """The reference (RFC 9126 section 2.2), good until `now` and its `expires_in`.

    Raises Failure CLIENT_REJECTED, PROVIDER_ERROR, PROVIDER_RATE_LIMITED or REPLY_UNREADABLE: no
    answer here is about a grant.
    """
    try:
        error = error_name(spec, reply_fields(spec, reply))
    except Failure:
        error = None  # an unreadable body names no error
    if reply.status not in (200, 201) or error is not None:  # 201 by the RFC, 200 by some servers
        raise _as_client_failure(failure_of_reply(spec, reply, error, now))
    data = reply_fields(spec, reply)
    try:
        reference, lives_s = data.get("request_uri"), data.get("expires_in")
        if not isinstance(reference, str) or not _REQUEST_URI.fullmatch(reference):
            raise UnreadableBody(
                f"a request_uri that is {json_type(reference)}, or of a shape that can't be used"
            )
        if isinstance(lives_s, bool) or not isinstance(lives_s, int | float) or not lives_s > 0:
            raise UnreadableBody(f"an expires_in that is {json_type(lives_s)}, or not positive")
    except UnreadableBody as why:
        raise unreadable_reply(spec, reply, str(why)) from None
    expires_at = now + timedelta(seconds=min(lives_s, _MAX_LIFETIME_S))
    return PushedAuthorization(request_uri=reference, expires_at=expires_at)


def par_authorization_url(
    spec: ProviderSpec, integration: Integration, endpoint: str, request_uri: str
) -> str:
    """Where the browser goes: the reference and our client id, and nothing else (RFC 9126 section 4)."""
    name = spec.authorization_client_id_param or spec.client_id_param
    parts = urlsplit(endpoint)
    query = [
        *parse_qsl(parts.query, keep_blank_values=True),
        (name, integration.client_id),
        ("request_uri", request_uri),
    ]
    encoded = urlencode(query, quote_via=quote)
    return urlunsplit((*parts[:3], encoded, spec.authorization_url_fragment or ""))


def _as_client_failure(failure: Failure) -> Failure:
    """`invalid_grant` and its like have no meaning here: the request is what was refused."""
    if failure.code is not ErrorCode.GRANT_REJECTED:
        return failure
    return Failure(ErrorCode.CLIENT_REJECTED, failure.detail)
