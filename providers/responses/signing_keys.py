"""Checks a token's signature with the key of its issuer's set that it names (RFC 7515, RFC 7517). Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

# asymmetric: with a shared key, such as the client secret, the verifier could sign as well
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
_KEY_TYPES = {"RSA": RSAKey, "EC": ECKey}


class UnknownKey(Exception):
    """The token is signed with a key that isn't in the set; its issuer may have a new one."""


class UnusableKey(Exception):
    """The key can't be imported."""


def verified_payload(text: bytes, header: Mapping[str, Any], keys: Sequence[Mapping[str, Any]]) -> bytes:
    """The payload of a token whose signature is good; its `alg` is one of ALGORITHMS.

    Members of the header that aren't known are ignored (RFC 7515 section 4), unless they are critical.
    Raises UnknownKey, UnusableKey, JoseError, ValueError.
    """
    registry = jws.JWSRegistry(algorithms=[header["alg"]], strict_check_header=False)
    return jws.deserialize_compact(text, select_key(header, keys), registry=registry).payload


def select_key(header: Mapping[str, Any], keys: Sequence[Mapping[str, Any]]) -> RSAKey | ECKey:
    """The key that a token's header names, of the type of its `alg`, which is one of ALGORITHMS.

    Raises UnknownKey unless exactly one fits, and UnusableKey.
    """
    kid, family = header.get("kid"), "EC" if header["alg"].startswith("ES") else "RSA"
    usable = [
        key
        for key in keys
        if key.get("kty") == family
        and key.get("use") in (None, "sig")
        and key.get("alg") in (None, header["alg"])
    ]
    named = [key for key in usable if key.get("kid") == kid] if kid is not None else usable
    if len(named) != 1:
        raise UnknownKey
    try:
        return _KEY_TYPES[family].import_key(dict(named[0]))
    except (JoseError, ValueError, KeyError):
        raise UnusableKey from None
