"""What Envoy sets and removes before it sends an app's request on. Pure."""

from collections.abc import Iterable
from itertools import product

from evergrant_server.gateway.proxy.headers import NEVER_ASKED, RawHeaders, passed_headers

KEY = "evergrant-envoy-key"
CONNECTION = "evergrant-connection"

# Envoy frames the request, and may not be told to remove these
_FRAMING = frozenset(
    {
        *("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "proxy-connection"),
        *("host", "expect", "content-length", "accept-encoding", "x-forwarded-proto"),
    }
)
# over HTTP the gateway doesn't see what the app sent: these go whether or not it did
_ALWAYS = frozenset({KEY, CONNECTION, *(name.decode() for name in NEVER_ASKED)})


def removed_headers(given: RawHeaders, injected: RawHeaders, own_overrides: Iterable[str] = ()) -> list[str]:
    """The app's headers that don't go on: what the proxy refuses, by which the API would take another method,
    and other spellings of the credential's."""
    ours = {name.lower().decode() for name, _ in injected}
    passed = {name.lower() for name, _ in passed_headers(given, [name for name, _ in injected])}
    arrived = {name.lower().decode("latin-1") for name, _ in given if name.lower() not in passed}
    spellings = {it for name in ours for it in _spellings(name)}
    overrides = {name.lower() for name in own_overrides}
    removed = (_ALWAYS | arrived | spellings | overrides) - ours - _FRAMING
    return sorted(it for it in removed if not it.startswith(":"))


def _spellings(name: str) -> set[str]:
    """The name with `_` in place of any of its `-`: some servers read them alike."""
    first, *rest = name.split("-")
    return {
        first + "".join(sign + it for sign, it in zip(signs, rest, strict=True))
        for signs in product("-_", repeat=len(rest))
    }
