"""Which headers pass, in both directions. Pure."""

from collections.abc import Collection, Sequence

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
_HARMLESS = (
    (b"Content-Security-Policy", b"sandbox"),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Cache-Control", b"no-store"),
)


def passed_headers(headers: RawHeaders, credential: Collection[bytes] = ()) -> list[tuple[bytes, bytes]]:
    """The caller's headers that go on. `credential` has the names of those that are put in, and arrive once.

    A server may take `_` for `-`, and the case of names means nothing.
    """
    named = {plain_name(name) for name in credential}
    return _passing(headers, NEVER_ASKED, _NOT_ASKED_PREFIXES, named)


def response_headers(headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    """The provider's headers that reach the caller, and those that keep a browser from running its pages."""
    return [*_passing(headers, _NOT_ANSWERED, _NOT_ANSWERED_PREFIXES, set()), *_HARMLESS]


def _passing(
    headers: RawHeaders, refused: frozenset[bytes], prefixes: tuple[bytes, ...], named: set[bytes]
) -> list[tuple[bytes, bytes]]:
    """Without those that are refused, begin with a prefix, or are named: also by `Connection` (RFC 9110
    section 7.6.1)."""
    plain = [plain_name(name) for name, _ in headers]
    if b"connection" in plain:
        values = (value for name, (_, value) in zip(plain, headers, strict=True) if name == b"connection")
        named = named | {plain_name(name.strip()) for value in values for name in value.split(b",")}
    return [
        header
        for name, header in zip(plain, headers, strict=True)
        if name not in refused and name not in named and not name.startswith(prefixes)
    ]


def values_of(name: bytes, headers: RawHeaders) -> list[bytes]:
    return [value for header, value in headers if header.lower() == name]


def plain_name(name: bytes) -> bytes:
    return name.lower().replace(b"_", b"-")
