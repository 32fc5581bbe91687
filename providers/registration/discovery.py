"""Discovers the endpoints of an issuer (RFC 8414, then OpenID Connect Discovery 1.0), and registers a client.

The issuer in the document must equal the requested one as a string (RFC 8414 section 3.3), so that
no server can publish metadata for another.
"""

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx2

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.secret import Secret
from evergrant_server.core.text import json_type
from evergrant_server.egress import BeforeSend, Egress, SendObserver, why_unreachable
from providers.definition.schema_request import MUTUAL_TLS
from providers.registration.documents import MAX_URL_LENGTH, fail, fetch_document, shown
from providers.requests.id_jag import ID_JAG_PROFILE
from providers.requests.request_format import STANDARD_HEADERS
from providers.requests.sender import SendFailed
from providers.responses.raw_reply import RawReply

_ALIASED = (
    "token_endpoint",
    "revocation_endpoint",
    "introspection_endpoint",
    "pushed_authorization_request_endpoint",
    "device_authorization_endpoint",
)
_MAX_RESOURCES = 20
_MAX_SCOPES = 200
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,200}")  # RFC 6749 section 3.3
_OF_LOGINS = ("jwks_uri", "userinfo_endpoint")  # OpenID Connect Discovery 1.0 section 3


async def discover(egress: Egress, issuer: str, *, require_pkce: bool = False) -> Endpoints:
    """The endpoints that a server publishes for `issuer`.

    With `require_pkce` a document that says nothing about PKCE is refused too.

    Raises Failure DISCOVERY_FAILED with the reason, EGRESS_REFUSED for a URL that the egress policy
    forbids, PROVIDER_UNREACHABLE or PROVIDER_ERROR when a later try may succeed.
    """
    _check_issuer(egress, issuer)
    missing: list[str] = []
    async with egress.client(headers=STANDARD_HEADERS) as http:
        for url in document_urls(issuer):
            document = await fetch_document(http, url, issuer, missing)
            if document is not None:
                return _parse_endpoints(egress, issuer, document, require_pkce)
    fail(issuer, "no metadata document: " + "; ".join(missing))


def document_urls(issuer: str) -> tuple[str, ...]:
    """The possible URLs of an issuer's metadata, in the order in which they are tried.

    RFC 8414 puts a suffix between host and path (section 3.1), also that of OpenID Connect (section 5);
    some servers put it after the path. OpenID Connect puts its own after the path (Discovery 1.0 section
    4.1); it is last, since its document may lack the revocation endpoint.
    """
    parts = urlsplit(issuer)
    path = parts.path.rstrip("/")  # both specifications remove a terminating slash

    def at(url_path: str) -> str:
        return urlunsplit((parts.scheme, parts.netloc, url_path, "", ""))

    oauth, oidc = "/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"
    return tuple(dict.fromkeys([at(oauth + path), at(oidc + path), at(path + oauth), at(path + oidc)]))


def _check_issuer(egress: Egress, issuer: str) -> None:
    if len(issuer) > MAX_URL_LENGTH:
        fail("", "the issuer is too long")
    try:
        parts = urlsplit(issuer)
    except ValueError:
        fail("", "the issuer is not a URL")
    if parts.query or parts.fragment or "?" in issuer or "#" in issuer:
        fail(issuer, "an issuer has no query and no fragment (RFC 8414 section 2)")
    egress.policy.check_url(issuer)


def _parse_endpoints(egress: Egress, issuer: str, document: dict[str, Any], require_pkce: bool) -> Endpoints:
    named = document.get("issuer")
    if named != issuer:
        fail(
            issuer,
            f"the document names another issuer{shown(named)}" if named else "the document names no issuer",
        )
    grants = _strings(issuer, document, "grant_types_supported")
    browser = grants is None or "authorization_code" in grants
    methods = _strings(issuer, document, "code_challenge_methods_supported")
    if browser and (require_pkce or methods is not None) and "S256" not in (methods or ()):
        fail(issuer, "the server doesn't support PKCE with S256 (RFC 9700 section 2.1.1)")
    iss = document.get("authorization_response_iss_parameter_supported", False)
    if not isinstance(iss, bool):
        fail(issuer, f"authorization_response_iss_parameter_supported is {json_type(iss)}")
    aliases = document.get("mtls_endpoint_aliases", {})
    if not isinstance(aliases, dict):
        fail(issuer, f"mtls_endpoint_aliases is {json_type(aliases)}")
    required = ("authorization_endpoint", "token_endpoint") if browser else ("token_endpoint",)
    urls = _urls(egress, issuer, document, (*required, "registration_endpoint", *_ALIASED))
    for name in required:
        if name not in urls:
            fail(issuer, f"{name} is missing")
    return Endpoints(
        **urls,
        issuer=issuer,
        iss_in_callback=iss,
        token_auth_methods=tuple(_strings(issuer, document, "token_endpoint_auth_methods_supported") or ()),
        revocation_auth_methods=tuple(_listed(document, "revocation_endpoint_auth_methods_supported")),
        pushed_requests_required=document.get("require_pushed_authorization_requests") is True,
        dpop_algorithms=tuple(_strings(issuer, document, "dpop_signing_alg_values_supported") or ()),
        offline_access="offline_access" in _listed(document, "scopes_supported"),
        scopes=tuple(filter(_SCOPE.fullmatch, _listed(document, "scopes_supported")))[:_MAX_SCOPES],
        **_urls_of_logins(egress, issuer, document),
        protected_resources=_protected_resources(egress, document),
        takes_metadata_documents=document.get("client_id_metadata_document_supported") is True,
        takes_id_jags=_takes_id_jags(document),
        mtls_aliases=_urls(egress, issuer, aliases, _ALIASED),  # RFC 8705 section 5
    )


def _protected_resources(egress: Egress, document: dict[str, Any]) -> tuple[str, ...]:
    """The identifiers of `protected_resources` (RFC 9728 section 4), once each.

    None of a list with anything else in it: what is left wouldn't be all that the server has.
    """
    listed = document.get("protected_resources")
    if not isinstance(listed, list) or not 0 < len(listed) <= _MAX_RESOURCES:
        return ()
    usable = all(isinstance(resource, str) and _is_resource(egress, resource) for resource in listed)
    return tuple(dict.fromkeys(listed)) if usable else ()


def _is_resource(egress: Egress, url: str) -> bool:
    """Whether a text is an identifier of a resource: an https URL without a fragment (RFC 9728 section 1.2).
    Nothing is requested there by it, so any port will do."""
    if len(url) > MAX_URL_LENGTH or not url.isascii() or not url.isprintable() or {" ", "#"} & set(url):
        return False
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return False
    if not host or "@" in parts.netloc:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and egress.policy.allows(host, port or 80))


def _takes_id_jags(document: dict[str, Any]) -> bool | None:
    """None where it lists no profiles (draft-ietf-oauth-identity-assertion-authz-grant section 7.2)."""
    name = "authorization_grant_profiles_supported"
    return ID_JAG_PROFILE in _listed(document, name) if name in document else None


def weakening_changes(pinned: Endpoints, now: Endpoints, client_auth: str | None = None) -> tuple[str, ...]:
    """Why new metadata must not replace the pinned; empty when it may. Pure.

    An attacker's document could send codes, tokens and secrets to another host, or omit a check that
    protects clients (RFC 9700 section 4.4).
    """
    before, after = pinned, now
    if client_auth in MUTUAL_TLS:
        before, after = pinned.for_mutual_tls(), now.for_mutual_tls()
    reasons = [
        f"{name} would move to another host"
        for name in ("authorization_endpoint", *_ALIASED, *_OF_LOGINS)
        if _origin_changed(getattr(before, name), getattr(after, name))
    ]
    if pinned.resource != now.resource:
        reasons.append(f"tokens would be for another resource{shown(now.resource)}")
    if pinned.iss_in_callback and not now.iss_in_callback:
        reasons.append("callbacks would no longer name their issuer (RFC 9207)")
    if pinned.pushed_requests_required and not now.pushed_requests_required:
        reasons.append("browsers could read and change requests again (RFC 9126)")
    if pinned.revocation_endpoint is not None and now.revocation_endpoint is None:
        reasons.append("grants could no longer be revoked (RFC 7009)")
    if client_auth and now.token_auth_methods and client_auth not in now.token_auth_methods:
        reasons.append(f"our client authentication, {client_auth}, would no longer be supported")
    return tuple(reasons)


def _origin_changed(before: str | None, after: str | None) -> bool:
    origins = {(url.scheme, url.netloc.lower()) for url in map(urlsplit, filter(None, (before, after)))}
    return len(origins) > 1


def _urls(egress: Egress, issuer: str, fields: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Those of the named URLs that are there, checked."""
    members = {name: fields[name] for name in names if fields.get(name) is not None}
    for name, url in members.items():
        if not isinstance(url, str) or len(url) > MAX_URL_LENGTH or not url.isprintable() or "{" in url:
            fail(issuer, f"{name} is not a URL")
        if "#" in url:
            fail(issuer, f"{name} has a fragment (RFC 6749 sections 3.1 and 3.2)")
        try:
            egress.policy.check_url(url)
        except Failure as refused:
            fail(issuer, f"{name}: {refused.detail}")
    return members


def _urls_of_logins(egress: Egress, issuer: str, document: dict[str, Any]) -> dict[str, Any]:
    """Those that are usable: no connection depends on them."""
    urls: dict[str, Any] = {}
    for name in _OF_LOGINS:
        with suppress(Failure):
            urls |= _urls(egress, issuer, document, (name,))
    return urls


def _strings(issuer: str, document: dict[str, Any], name: str) -> list[str] | None:
    value = document.get(name)
    if value is not None and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        fail(issuer, f"{name} is not an array of strings")
    return value


def _listed(document: dict[str, Any], name: str) -> list[str]:
    """The strings of an array that no connection depends on; a malformed one is empty."""
    value = document.get(name)
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


async def send_registration(
    egress: Egress,
    endpoint: str,
    metadata: dict[str, Any],
    initial_token: Secret | None,
    *,
    before_send: BeforeSend | None = None,
) -> RawReply:
    """POST the metadata (RFC 7591 section 3.1). Raises SendFailed."""
    headers = {**STANDARD_HEADERS, "Content-Type": "application/json"}
    if initial_token is not None:
        headers["Authorization"] = f"Bearer {initial_token.reveal()}"
    watch = SendObserver(before_send)
    try:
        async with egress.client(watch, headers=headers) as http:
            response = await http.post(endpoint, content=json.dumps(metadata).encode())
    except Failure as failure:
        raise SendFailed(failure, sent=watch.sent) from None
    except httpx2.TransportError as error:
        why = f"no client was registered: {why_unreachable(error)}"
        raise SendFailed(Failure(ErrorCode.PROVIDER_UNREACHABLE, why), sent=watch.sent) from None
    return RawReply.of(response)
