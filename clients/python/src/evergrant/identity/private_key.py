"""Assertions that an app signs with a private key of its own (RFC 7523 section 2.2)."""

import json
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast
from warnings import catch_warnings

from evergrant.errors import BadRequest

Identity = Callable[[str], Mapping[str, str]]

_JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"  # RFC 7523 section 2.2
_LIFETIME_S = 60
# by curve, and for an RSA key; another one is named by the `alg` of a JWK, or by `algorithm`
_ALGORITHMS = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "Ed25519": "Ed25519", None: "PS256"}


def client_assertion(jwt: str) -> Mapping[str, str]:
    """The parameters of a token request with this assertion."""
    return {"client_assertion_type": _JWT_BEARER, "client_assertion": jwt}


class PrivateKey:
    """Signs a new assertion for every token request. Needs the extra `identity`.

    `key` is a file, which is read for every token, or its text: a private RSA, EC or Ed25519 key as a JWK or
    in PEM. `algorithm` and `key_id` are the `alg` and `kid` that its public half is registered with; without
    them those of the JWK, and otherwise ES256 to ES512 by curve, Ed25519, or PS256. Raises BadRequest when
    the key can't be used. Hidden in `repr`, and in every error.
    """

    def __init__(
        self, app_id: str, key: Path | str, *, algorithm: str | None = None, key_id: str | None = None
    ) -> None:
        self.app_id = app_id
        self._key, self._algorithm, self._key_id = key, algorithm, key_id
        self._load()

    def __repr__(self) -> str:
        return f"PrivateKey({self.app_id!r})"

    def __call__(self, issuer: str) -> Mapping[str, str]:
        from joserfc import jwt

        key, algorithm, key_id = self._load()
        header = {"alg": algorithm, "typ": "client-authentication+jwt"}
        if key_id is not None:
            header["kid"] = key_id
        now = int(time.time())
        claims = {
            "iss": self.app_id,
            "sub": self.app_id,
            "aud": issuer,
            "iat": now,
            "exp": now + _LIFETIME_S,
            "jti": secrets.token_urlsafe(32),
        }
        try:
            return client_assertion(jwt.encode(header, claims, key, algorithms=[algorithm]))
        except Exception:  # joserfc and cryptography raise many kinds, and their messages may quote the key
            raise _unusable(f"it can't sign with {algorithm}") from None

    def _load(self) -> tuple[Any, str, str | None]:
        text = _read(self._key) if isinstance(self._key, Path) else self._key
        key = import_key(text)
        if not key.is_private:
            raise _unusable("it is a public key")
        algorithm = self._algorithm or key.get("alg") or default_algorithm(key)
        return key, algorithm, self._key_id or key.get("kid")


def import_key(text: str) -> Any:
    """A private or public key in PEM or as a JWK. Raises BadRequest, which doesn't quote it."""
    jwk = _joserfc()
    try:
        key_data: object = json.loads(text) if text.lstrip().startswith("{") else text
    except ValueError:
        raise _unusable("it is not JSON") from None
    for key_type in (jwk.ECKey, jwk.OKPKey, jwk.RSAKey):
        try:
            with catch_warnings(action="ignore"):  # joserfc's, of a short key: the server refuses it
                key = key_type.import_key(key_data)
        except Exception:  # as above
            continue
        if isinstance(key_data, dict) and cast("dict[str, Any]", key_data).get("kty") != key.key_type:
            continue
        if getattr(key, "curve_name", None) in _ALGORITHMS:
            return key
    raise _unusable("it is no RSA, P-256, P-384, P-521 or Ed25519 key, as a JWK or in PEM")


def default_algorithm(key: Any) -> str:
    return _ALGORITHMS[getattr(key, "curve_name", None)]


def public_jwk(text: str, algorithm: str | None = None) -> dict[str, Any]:
    """The public half of a key with its `alg`, as it is registered. Raises BadRequest."""
    key = import_key(text)
    public = cast("dict[str, Any]", key.as_dict(private=False))
    public["alg"] = algorithm or public.get("alg") or default_algorithm(key)
    return {name: value for name, value in public.items() if name not in ("key_ops", "use")}


def new_private_key() -> str:
    """A new P-256 key pair as a JWK with its `alg`."""
    key = _joserfc().ECKey.generate_key("P-256", private=True)
    return json.dumps({**key.as_dict(private=True), "alg": "ES256"})


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise _unusable(f"{path}: {reason}") from None


def _unusable(reason: str) -> BadRequest:
    return BadRequest(
        f"the key can't be used: {reason}",
        code="key_unusable",
        repair="Give a private key as a JWK or in PEM. To make one: evergrant apps credentials new-key FILE",
    )


def _joserfc() -> Any:
    try:
        from joserfc import jwk
    except ImportError:
        raise BadRequest(
            "an app's own key needs joserfc",
            code="extra_missing",
            repair="Install it: pip install 'evergrant[identity]'.",
        ) from None
    return jwk
