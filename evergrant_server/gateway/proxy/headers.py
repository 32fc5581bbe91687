"""Which headers pass, in both directions, and what a provider's challenge says about scopes. Pure."""

import re
from collections.abc import Collection, Iterable, Sequence

RawHeaders = Sequence[tuple[bytes, bytes]]
_HOP_BY_HOP = frozenset(
    {
        *(b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
        *(b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"proxy-authentication-info"),
    }
)  # RFC 9110 section 7.6.1
NEVER_ASKED = _HOP_BY_HOP | {
    *(b"authorization", b"cookie", b"host", b"dpop", b"expect", b"content-length", b"accept-encoding"),
    # what proxies say of a request: who sent it, from where, and for which host and path
    *(b"forwarded", b"x-forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"),
    *(b"x-forwarded-port", b"x-forwarded-prefix", b"x-forwarded-server", b"x-forwarded-uri"),
    *(b"x-forwarded-user", b"x-forwarded-email", b"x-forwarded-client-cert", b"forwarded-for", b"via"),
    *(b"x-real-ip", b"x-client-ip", b"client-ip", b"true-client-ip", b"x-cluster-client-ip"),
    *(b"x-remote-ip", b"x-remote-addr", b"x-originating-ip", b"fastly-client-ip", b"x-azure-clientip"),
    *(b"x-azure-socketip", b"cf-connecting-ip", b"cf-connecting-ipv6", b"cf-pseudo-ipv4", b"cf-ipcountry"),
    *(b"cf-visitor", b"cf-worker", b"cdn-loop", b"remote-user", b"x-remote-user"),
    *(b"x-original-url", b"x-original-uri", b"x-original-host", b"x-original-method", b"x-rewrite-url"),
    *(b"x-original-forwarded-for", b"x-host", b"x-http-host-override", b"x-scheme", b"x-url-scheme"),
    *(b"x-envoy-original-path", b"x-envoy-original-host", b"x-envoy-original-dst-host"),
    *(b"x-envoy-external-address", b"x-envoy-internal", b"front-end-https", b"x-middleware-subrequest"),
    *(b"x-http-method", b"x-http-method-override", b"x-method-override"),
    *(b"traceparent", b"tracestate", b"baggage"),  # ids of the caller's own systems
}
_NOT_ASKED_PREFIXES = (
    *(b"x-forwarded-", b"x-original-", b"x-rewrite-", b"x-envoy-", b"cf-connecting-"),
    *(b"evergrant-", b"proxy-"),
)
_NOT_ANSWERED = _HOP_BY_HOP | {
    *(b"set-cookie", b"set-cookie2", b"alt-svc", b"clear-site-data", b"refresh", b"content-encoding"),
    *(b"strict-transport-security", b"content-security-policy", b"x-content-type-options"),
    *(b"content-security-policy-report-only", b"www-authenticate", b"authentication-info", b"content-length"),
    *(b"cache-control", b"service-worker-allowed", b"sourcemap", b"x-frame-options", b"dpop-nonce"),
}
_NOT_ANSWERED_PREFIXES = (b"access-control-", b"evergrant-", b"proxy-")
# one parameter at a time, so that text inside quotes is never taken for a parameter
_PARAMETER = re.compile(
    r"\s*,?\s*(?:[A-Za-z0-9_-]+\s+)?"  # perhaps a scheme
    r"([A-Za-z0-9_-]+)\s*=\s*"
    r'(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))'
)
_SCOPES = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+(?: [\x21\x23-\x5b\x5d-\x7e]+)*\Z")  # RFC 6749 section 3.3
_MOST = 4000


def passed_headers(headers: RawHeaders, credential: Collection[bytes] = ()) -> list[tuple[bytes, bytes]]:
    """The caller's headers that go on. `credential` has the names of those that are put in, and arrive once.

    A server may take `_` for `-`, and the case of names means nothing.
    """
    refused = NEVER_ASKED | _named_by_connection(headers) | {plain_name(name) for name in credential}
    return [
        (name, value)
        for name, value in headers
        if plain_name(name) not in refused and not plain_name(name).startswith(_NOT_ASKED_PREFIXES)
    ]


def request_headers(headers: RawHeaders, injected: RawHeaders) -> list[tuple[bytes, bytes]]:
    """What is sent: the caller's headers that go on, and the injected ones."""
    passed = passed_headers(headers, [name for name, _ in injected])
    return [*passed, (b"Accept-Encoding", b"identity"), *injected]


def response_headers(headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    """The provider's headers that reach the caller, and those that keep a browser from running its pages."""
    refused = _NOT_ANSWERED | _named_by_connection(headers)
    passed = [
        (name, value)
        for name, value in headers
        if plain_name(name) not in refused and not plain_name(name).startswith(_NOT_ANSWERED_PREFIXES)
    ]
    return [
        *passed,
        (b"Content-Security-Policy", b"sandbox"),
        (b"X-Content-Type-Options", b"nosniff"),
        (b"Cache-Control", b"no-store"),
    ]


def values_of(name: bytes, headers: RawHeaders) -> list[bytes]:
    return [value for header, value in headers if header.lower() == name]


def plain_name(name: bytes) -> bytes:
    return name.lower().replace(b"_", b"-")


def _named_by_connection(headers: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
    """The names in `Connection` (RFC 9110 section 7.6.1)."""
    named = (value.split(b",") for name, value in headers if plain_name(name) == b"connection")
    return {plain_name(value.strip()) for values in named for value in values}


def missing_scopes(headers: RawHeaders) -> str | None:
    """The scopes that a challenge with `insufficient_scope` asks for, or "" if it names none; None: no such
    challenge."""
    for value in values_of(b"www-authenticate", headers):
        parameters = _parameters(value.decode("latin-1"))
        if parameters.get("error") == "insufficient_scope":
            scopes = parameters.get("scope", "")
            return scopes if len(scopes) <= _MOST and _SCOPES.match(scopes) else ""
    return None


def _parameters(challenge: str) -> dict[str, str]:
    parameters: dict[str, str] = {}
    at = 0
    while (parameter := _PARAMETER.match(challenge, at)) is not None:
        name, quoted, bare = parameter.groups()
        parameters.setdefault(name.lower(), bare if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
        at = parameter.end()
    return parameters
