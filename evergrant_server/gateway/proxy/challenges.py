"""What a provider's challenge says about scopes (RFC 6750 section 3). It goes no further than this."""

import re

from evergrant_server.gateway.proxy.headers import RawHeaders, values_of

# one parameter at a time, so that text inside quotes is never taken for a parameter
_PARAMETER = re.compile(
    r"\s*,?\s*(?:[A-Za-z0-9_-]+\s+)?"  # perhaps a scheme
    r"([A-Za-z0-9_-]+)\s*=\s*"
    r'(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))'
)
_SCOPES = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+(?: [\x21\x23-\x5b\x5d-\x7e]+)*\Z")  # RFC 6749 section 3.3
_MOST = 4000


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
    found: dict[str, str] = {}
    at = 0
    while (it := _PARAMETER.match(challenge, at)) is not None:
        name, quoted, bare = it.groups()
        found.setdefault(name.lower(), bare if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
        at = it.end()
    return found
