"""JWTs with which apps prove their identity: RFC 7523 section 2.2, as draft-ietf-oauth-rfc7523bis limits it.

Pure: registered keys and the time are arguments. A refusal quotes nothing of the assertion.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, cast

from joserfc import jwk, jws
from joserfc.errors import JoseError

from evergrant_server.core.clock import clocks_apart
from evergrant_server.core.ids import is_id
from evergrant_server.core.text import is_storable_text

TYPE = "client-authentication+jwt"
# asymmetric: with a shared key Evergrant could sign as well
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519")
MOST_KEYS = 10
LONGEST_LIFETIME = timedelta(minutes=5)
CLOCK_TOLERANCE = timedelta(seconds=30)  # of a client whose clock is ahead
_LONGEST_JTI = 255
_RSA_BYTES = range(256, 513)  # of the modulus: 2048 to 4096 bits
_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "Ed25519": "Ed25519"}
_MEMBERS = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


class AssertionRefused(Exception):
    """The assertion breaks a rule; the text names it."""


class Assertion(NamedTuple):
    """An assertion that keeps every rule which needs no key. Its signature isn't verified yet."""

    text: str
    client_id: str
    jti: str
    expires_at: datetime
    algorithm: str
    key_id: str | None


def public_key_set(document: Mapping[str, Any]) -> dict[str, Any]:
    """The JWK set (RFC 7517 section 5) as it is kept: public members, `alg`, and `kid` where a key has one.

    Raises ValueError for a set with a private, symmetric or weak key, or a key without `alg`.
    """
    keys = document.get("keys")
    if not isinstance(keys, list) or not 0 < len(cast("list[Any]", keys)) <= MOST_KEYS:
        raise ValueError(f"needs `keys`, a list of 1 to {MOST_KEYS} keys")
    kept = [_public_key(key) for key in cast("list[Any]", keys)]
    named = [key["kid"] for key in kept if "kid" in key]
    if len(named) != len(set(named)):
        raise ValueError("two keys have the same `kid`")
    return {"keys": kept}


def _public_key(member: Any) -> dict[str, str]:
    if not isinstance(member, dict):
        raise ValueError("a key isn't a JWK")
    key = cast("dict[str, Any]", member)
    if not _PRIVATE.isdisjoint(key):
        raise ValueError("a key is private or symmetric: give its public half, and keep this one to yourself")
    algorithm, members = key.get("alg"), _MEMBERS.get(str(key.get("kty")))
    if algorithm not in ALGORITHMS or members is None:
        raise ValueError(f"each key needs an `alg` of {', '.join(ALGORITHMS)}, and a `kty` that fits it")
    if key.get("use") not in (None, "sig"):
        raise ValueError("a key's `use` isn't `sig`")
    kept = {name: key[name] for name in ("kty", *members, "alg", "kid") if name in key}
    if not all(
        isinstance(value, str) and 0 < len(value) <= 700 and is_storable_text(value)
        for value in kept.values()
    ):
        raise ValueError("a key's members must be texts")
    try:
        imported = jwk.import_key(dict(kept)) if key["kty"] != "RSA" else _rsa_key(kept)
    except (JoseError, ValueError, TypeError, KeyError):
        raise ValueError("a key isn't a valid JWK, or is an RSA key without 2048 to 4096 bits") from None
    expected = _CURVES.get(str(algorithm))
    if getattr(imported, "curve_name", None) != expected:
        raise ValueError("a key's type or curve doesn't fit its `alg`")
    return kept


def _rsa_key(kept: Mapping[str, str]) -> jwk.RSAKey:
    if (len(kept["n"]) * 3) // 4 not in _RSA_BYTES:
        raise ValueError
    key = jwk.RSAKey.import_key(dict(kept))
    if key.raw_value.key_size // 8 not in _RSA_BYTES:
        raise ValueError
    return key


def read_assertion(text: str, issuer: str, now: datetime, client_id: str | None = None) -> Assertion:
    """The assertion, if it keeps every rule that needs no key. Raises AssertionRefused.

    `client_id` is the OAuth client that must have signed it; None: an app. Clients' libraries follow RFC 7523
    itself, which has no `typ` of its own.
    """
    header, claims = _parts(text)
    if "crit" in header or "b64" in header:
        raise AssertionRefused("The assertion's header has a critical member that isn't known.")
    kind = str(header.get("typ", "jwt")).lower().removeprefix("application/")
    if kind != TYPE and (client_id is None or kind != "jwt"):
        raise AssertionRefused(f"The assertion's typ must be {TYPE}.")
    if header.get("alg") not in ALGORITHMS:
        raise AssertionRefused("The assertion's alg must be an asymmetric signature that Evergrant knows.")
    if claims.get("aud") != issuer:
        raise AssertionRefused("The assertion's aud must be the issuer alone, as one string.")
    sub, jti, key_id = claims.get("sub"), claims.get("jti"), header.get("kid")
    if not isinstance(sub, str) or claims.get("iss") != sub:
        raise AssertionRefused("The assertion's iss and sub must both be the client's id.")
    if sub != client_id and (client_id is not None or not is_id(sub, "app")):
        raise AssertionRefused("The assertion's iss and sub must both be the client's id.")
    if not isinstance(jti, str) or not 0 < len(jti) <= _LONGEST_JTI or not is_storable_text(jti):
        raise AssertionRefused(f"The assertion needs a jti of at most {_LONGEST_JTI} characters.")
    if key_id is not None and not isinstance(key_id, str):
        raise AssertionRefused("The assertion's kid must be a text.")
    return Assertion(text, sub, jti, _checked_times(claims, now), header["alg"], key_id)


def is_signed_by(assertion: Assertion, keys: Sequence[Mapping[str, Any]]) -> bool:
    """True when one of these registered keys has signed it, with the `alg` that the key is registered for."""
    for key in keys:
        if key["alg"] != assertion.algorithm or assertion.key_id not in (None, key.get("kid")):
            continue
        try:
            jws.deserialize_compact(assertion.text, jwk.import_key(dict(key)), [assertion.algorithm])
        except (JoseError, ValueError):
            continue
        return True
    return False


def _parts(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        token = jws.extract_compact(text.encode("ascii"))
        header, claims = token.headers(), json.loads(token.payload)
    except (JoseError, ValueError, RecursionError):
        raise AssertionRefused("The assertion isn't a signed JWT in compact form.") from None
    if not isinstance(claims, dict):
        raise AssertionRefused("The assertion's claims aren't an object.")
    return header, cast("dict[str, Any]", claims)


def _checked_times(claims: Mapping[str, Any], now: datetime) -> datetime:
    """The moment of `exp`. Raises AssertionRefused."""
    clock, ahead = now.timestamp(), CLOCK_TOLERANCE.total_seconds()
    for name in ("exp", "nbf", "iat"):
        value = claims.get(name)
        if value is None and name != "exp":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise AssertionRefused(f"The assertion's {name} must be a number of seconds.")
    expires = claims["exp"]
    if not clock < expires <= clock + LONGEST_LIFETIME.total_seconds() + ahead:
        why = "The assertion has expired, or its exp is more than five minutes ahead"
        raise AssertionRefused(f"{why}: it is {clocks_apart(expires, now)}.")
    for name in ("nbf", "iat"):
        if claims.get(name, 0) > clock + ahead:
            why = f"The assertion's {name} is in the future"
            raise AssertionRefused(f"{why}: it is {clocks_apart(claims[name], now)}.")
    return datetime.fromtimestamp(expires, UTC)
