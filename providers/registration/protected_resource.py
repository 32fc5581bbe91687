"""Discovers which issuer's tokens a protected resource takes (RFC 9728), as an MCP client does.

A request without a token is answered by a challenge, which names the metadata's URL and the scopes; where it
doesn't, the metadata is at its well-known URLs. Nothing here sends a credential.
"""

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx2

from evergrant_server.egress import Egress
from providers.registration.documents import MAX_URL_LENGTH, fail, fetch_document, issuer_unreachable, shown
from providers.requests.request_format import STANDARD_HEADERS
from providers.responses.challenges import Challenge, bearer_challenge

_WELL_KNOWN = "/.well-known/oauth-protected-resource"
_MAX_ISSUERS = 20
_MAX_SCOPES = 200
_DEFAULT_PORTS = {"https": 443, "http": 80}
_MODERN = "2026-07-28"
_META = {
    "io.modelcontextprotocol/protocolVersion": _MODERN,
    "io.modelcontextprotocol/clientInfo": {"name": "Evergrant", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
# Also MCP servers of the older revisions ask for a token before they look at version and session.
_PROBE = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": _META}}
_PROBE_HEADERS = {
    "Accept": "application/json, text/event-stream",
    "Content-Type": "application/json",
    "MCP-Protocol-Version": _MODERN,
    "Mcp-Method": "tools/list",
}


@dataclass(frozen=True)
class ProtectedResource:
    """What a resource says about itself: its identifier as it spells it, its issuers, what to request."""

    resource: str
    issuers: tuple[str, ...]
    scopes: tuple[str, ...]


async def discover_resource(egress: Egress, url: str) -> ProtectedResource:
    """The metadata of the protected resource at `url`.

    Raises Failure DISCOVERY_FAILED with the reason, EGRESS_REFUSED for a URL that the egress policy forbids,
    PROVIDER_UNREACHABLE or PROVIDER_ERROR when a later try may succeed.
    """
    egress.policy.check_url(url)
    async with egress.client(headers=STANDARD_HEADERS) as http:
        challenge = await _challenge(http, url)
        named = challenge.resource_metadata if challenge is not None else None
        places = _well_known_urls(url) if named is None else ((_checked_url(egress, url, named), (url,)),)
        missing: list[str] = []
        for place, identifiers in places:
            document = await fetch_document(http, place, url, missing)
            if document is not None:
                return _read(url, document, identifiers, challenge)
    fail(url, "no protected resource metadata (RFC 9728): " + "; ".join(missing))


def is_same_resource(first: str, second: str) -> bool:
    """Whether two identifiers are the same URI: case of scheme and host, the default port and an empty path
    make no difference (RFC 3986 section 6.2), a final slash of a path does."""
    try:
        return _normalised(first) == _normalised(second)
    except ValueError:
        return False


async def _challenge(http: httpx2.AsyncClient, url: str) -> Challenge | None:
    """The Bearer challenge of the answer to a request without a token, if it has one."""
    try:
        response = await http.post(url, headers=_PROBE_HEADERS, content=json.dumps(_PROBE).encode())
    except httpx2.TransportError as error:
        raise issuer_unreachable(url, error) from None
    if response.status_code != 401:
        return None
    return bearer_challenge(response.headers.get_list("www-authenticate"))


def _well_known_urls(url: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Where the metadata is without a challenge, each with the identifiers that it may be about.

    RFC 9728 section 3.1: the suffix comes between host and path. At the root it describes the origin
    (section 3.3), or names this resource.
    """
    parts = urlsplit(url)
    path = parts.path if parts.path != "/" else ""

    def at(url_path: str) -> str:
        return urlunsplit((parts.scheme, parts.netloc, url_path, "", ""))

    root = (at(_WELL_KNOWN), (at(""), url))
    return ((at(_WELL_KNOWN + path), (url,)), root) if path else (root,)


def _checked_url(egress: Egress, url: str, named: str) -> str:
    if len(named) > MAX_URL_LENGTH or not named.isprintable() or "#" in named:
        fail(url, "the challenge's resource_metadata is not a URL")
    egress.policy.check_url(named)
    return named


def _read(
    url: str, document: dict[str, Any], identifiers: tuple[str, ...], challenge: Challenge | None
) -> ProtectedResource:
    """The document's content. `resource` must be what was asked about (RFC 9728 section 3.3)."""
    resource = document.get("resource")
    if not isinstance(resource, str) or not any(
        is_same_resource(resource, identifier) for identifier in identifiers
    ):
        fail(url, f"its metadata is about another resource{shown(resource)}")
    if len(resource) > MAX_URL_LENGTH or not resource.isprintable() or " " in resource:
        fail(url, "its metadata has a resource that is not a URL")
    issuers = document.get("authorization_servers")
    if not isinstance(issuers, list) or not 0 < len(issuers) <= _MAX_ISSUERS:
        fail(url, "its metadata names no authorization_servers")
    if not all(
        isinstance(issuer, str) and issuer.isprintable() and len(issuer) <= MAX_URL_LENGTH
        for issuer in issuers
    ):
        fail(url, "its metadata has an authorization server that is not a URL")
    demanded = challenge.scopes if challenge is not None else ()
    return ProtectedResource(resource, tuple(issuers), (demanded or _scopes(document))[:_MAX_SCOPES])


def _scopes(document: dict[str, Any]) -> tuple[str, ...]:
    listed = document.get("scopes_supported")
    if not isinstance(listed, list):
        return ()
    return tuple(dict.fromkeys(scope for scope in listed if isinstance(scope, str) and _is_scope(scope)))


def _is_scope(text: str) -> bool:
    return Challenge("bearer", {"scope": text}).scopes == (text,)


def _normalised(url: str) -> tuple[str, str, int | None, str, str]:
    """Raises ValueError for what is no URL, or has a user name or a fragment."""
    parts = urlsplit(url)
    if "#" in url or "@" in parts.netloc:
        raise ValueError("not an identifier of a resource (RFC 8707 section 2)")
    scheme = parts.scheme.lower()
    port = parts.port or _DEFAULT_PORTS.get(scheme)
    return scheme, (parts.hostname or "").lower(), port, parts.path or "/", parts.query
