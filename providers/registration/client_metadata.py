"""Client metadata for a registration, and the registered client in its reply (RFC 7591). Pure."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints, Integration, RegistrationMethod
from evergrant_server.core.provider_words import ReplyFailure
from evergrant_server.core.secret import Secret
from evergrant_server.core.text import json_type
from providers.responses.raw_reply import RawReply, UnreadableBody, parse_body, retry_after
from providers.responses.reply_words import words_of_fields

CLIENT_NAME = "Evergrant"
_BASIC, _POST = "client_secret_basic", "client_secret_post"
_AUTH_METHODS = (_POST, _BASIC, "none")
_MAX_LENGTH = 2048


@dataclass(frozen=True)
class RegisteredClient:
    """The client that the server registered (RFC 7591 section 3.2.1)."""

    client_id: str
    client_secret: Secret | None
    client_auth: str
    secret_expires_at: datetime | None  # None: never
    management_url: str | None  # RFC 7592 section 3
    management_token: Secret | None


def client_metadata(
    redirect_uri: str,
    *,
    auth: str,
    scopes: tuple[str, ...] = (),
    client_id: str | None = None,
    dpop: bool = False,
) -> dict[str, Any]:
    """Client metadata (RFC 7591 section 2). With `client_id` it is a document at that URL.

    `dpop`: all tokens of this client are bound (RFC 9449 section 5.2). Only a native client may be called
    back over HTTP, on loopback (OpenID Connect Registration 1.0 section 2): Evergrant on a laptop.
    """
    metadata: dict[str, Any] = {
        "client_name": CLIENT_NAME,
        "redirect_uris": [redirect_uri],
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "token_endpoint_auth_method": auth,
        "application_type": "native" if redirect_uri.startswith("http:") else "web",
    }
    if dpop:
        metadata["dpop_bound_access_tokens"] = True
    if scopes:
        metadata["scope"] = " ".join(scopes)
    return metadata if client_id is None else {"client_id": client_id, **metadata}


def client_metadata_url(template: str, integration_id: str) -> str:
    """The client id of a client whose metadata document an authorization server fetches there."""
    return template.replace("{integration}", integration_id)


def with_document_client(integration: Integration, endpoints: Endpoints, url: str) -> Integration:
    """The integration with the metadata document at `url` as its client, where its registration is automatic
    and the server reads such documents. Servers fetch them over https alone."""
    undecided = integration.registration is RegistrationMethod.AUTOMATIC and not integration.client_id
    if not (undecided and endpoints.takes_metadata_documents and url.startswith("https://")):
        return integration
    return integration.__replace__(client_id=url, client_auth="none")


def scopes_to_register(integration: Integration, endpoints: Endpoints | None) -> tuple[str, ...]:
    """The scopes that consents request by default; none leaves them to the server."""
    offline = ("offline_access",) if endpoints is not None and endpoints.offline_access else ()
    named = integration.__replace__(endpoints=endpoints).scopes_by_default
    return tuple(dict.fromkeys((*named, *offline))) if named else ()


def auth_method_to_request(endpoints: Endpoints) -> str:
    """The preferred method that the server supports; its default is Basic (RFC 7591 section 2).

    The secret in the body comes first: with Basic, some servers require the client id in the body as
    well (the MCP SDK's), and others refuse it there (Okta). A server may take it at the token endpoint
    and not at the revocation endpoint.
    """
    offered = [method for method in _AUTH_METHODS if method in endpoints.token_auth_methods]
    at_revocation = endpoints.revocation_auth_methods or offered
    return next((method for method in offered if method in at_revocation), (*offered, _BASIC)[0])


def read_registration(reply: RawReply, *, asked_auth: str) -> RegisteredClient:
    """The registered client.

    Raises Failure CLIENT_REJECTED when the server refuses, REPLY_UNREADABLE for an invalid reply,
    PROVIDER_ERROR and PROVIDER_RATE_LIMITED when a later try may succeed.
    """
    if reply.status == 429:
        raise Failure(
            ErrorCode.PROVIDER_RATE_LIMITED, "too many registrations", retry_after=retry_after(reply.headers)
        )
    if reply.status >= 500:
        raise Failure(
            ErrorCode.PROVIDER_ERROR, f"the registration endpoint answered with status {reply.status}"
        )
    try:
        data = parse_body(reply.body, "json")
    except UnreadableBody as why:
        if reply.status >= 400:
            raise _refused(reply, {}) from None
        raise _unreadable(reply, str(why)) from None
    if reply.status not in (200, 201):
        raise _refused(reply, data)
    try:
        return _parse_registration(data, asked_auth)
    except UnreadableBody as why:
        raise _unreadable(reply, str(why)) from None


def _parse_registration(data: dict[str, Any], asked_auth: str) -> RegisteredClient:
    client_id = _text(data, "client_id")
    if client_id is None:
        raise UnreadableBody("no client_id")
    secret = _text(data, "client_secret")
    auth = _text(data, "token_endpoint_auth_method") or asked_auth
    if auth not in _AUTH_METHODS:
        raise UnreadableBody("a token_endpoint_auth_method that wasn't requested")
    if auth != "none" and secret is None:
        raise UnreadableBody("no client_secret, though its token endpoint requires one")
    token, url = _text(data, "registration_access_token"), _text(data, "registration_client_uri")
    return RegisteredClient(
        client_id=client_id,
        client_secret=Secret(secret) if secret and auth != "none" else None,
        client_auth=auth,
        secret_expires_at=_expiry(data.get("client_secret_expires_at")) if secret else None,
        management_url=url,
        management_token=Secret(token) if token else None,
    )


def _text(data: dict[str, Any], name: str) -> str | None:
    value = data.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > _MAX_LENGTH or not value.isprintable():
        raise UnreadableBody(f"a {name} that is {json_type(value)}, too long or not printable")
    return value


def _expiry(value: Any) -> datetime | None:
    """0 means never (RFC 7591 section 3.2.1)."""
    if value is None or value == 0:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 253_402_300_800:
        raise UnreadableBody(f"a client_secret_expires_at that is {json_type(value)}, or out of range")
    return datetime.fromtimestamp(value, UTC)


def _refused(reply: RawReply, data: dict[str, Any]) -> Failure:
    error = data.get("error")
    said = words_of_fields(reply, data, error if isinstance(error, str) else None)
    plain = said.error is not None and said.error.replace("_", "").isalnum()
    named = f" and the error {said.error}" if plain else ""
    return ReplyFailure(
        ErrorCode.CLIENT_REJECTED,
        f"the server refused the registration: status {reply.status}{named[:80]}",
        field="registration",
    ).with_words(said)


def _unreadable(reply: RawReply, why: str) -> Failure:
    return Failure(
        ErrorCode.REPLY_UNREADABLE, f"the registration answered with status {reply.status} and {why}"
    )
