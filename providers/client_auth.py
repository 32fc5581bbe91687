"""Client credentials that are keys: signed assertions, generated secrets, TLS certificates.

Owns signing with the integration's key and parsing its certificate. Doesn't store them and doesn't
write them into requests (`providers.requests.sender`).
"""

import json
import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, Key, OctKey, OKPKey, RSAKey

from evergrant_server.core.connections.credentials import ClientCertificate, ClientKey
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from providers.definition.schema import ProviderSpec
from providers.definition.templates import checked_params, fill_template

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_LIFETIME_S = 60  # an assertion is used at once
_CURVES = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "Ed25519": "Ed25519"}
_MIN_RSA_BITS = 2048  # bits, RFC 7518 section 3.3
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519")
_PEM_KINDS = ("RSA", "EC", "OKP")


def client_assertion(client_id: str, audience: str, key: ClientKey, at: datetime) -> str:
    """A client assertion signed with the key, for one audience and one use (RFC 7523 section 3)."""
    return sign_jwt(key, _claims(client_id, audience, at))


def secret_assertion(client_id: str, audience: str, secret: Secret, at: datetime) -> str:
    """A client assertion signed with the client secret (OpenID Connect Core section 9)."""
    claims = _claims(client_id, audience, at)
    return jwt.encode({"alg": "HS256", "typ": "JWT"}, claims, OctKey.import_key(secret.reveal()))


def sign_jwt(
    key: ClientKey,
    claims: Mapping[str, Any],
    *,
    alg: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> str:
    """A JWT over these claims; `headers` override its own. Raises Failure CLIENT_REJECTED: unusable key."""
    private = import_signing_key(key)
    header = {"alg": alg or signing_algorithm(private), "typ": "JWT"}
    name = key.id or private.kid
    if name:
        header["kid"] = name
    header |= headers or {}
    try:
        return jwt.encode(header, dict(claims), private, algorithms=list(_ALGORITHMS))
    except (JoseError, ValueError, TypeError):
        detail = f"the integration's key can't sign with {header['alg']}"
        raise Failure(ErrorCode.CLIENT_REJECTED, detail) from None


def import_signing_key(key: ClientKey) -> Key:
    """The key to sign with. Raises Failure CLIENT_REJECTED, which never quotes the key."""
    text = key.private.reveal().strip()
    try:
        found = JWKRegistry.import_key(json.loads(text)) if text.startswith("{") else _from_pem(text)
    except (JoseError, ValueError, TypeError, KeyError):
        raise _unusable_key("it is neither a PEM private key nor a JWK") from None
    if isinstance(found, OctKey) or not found.is_private:
        raise _unusable_key("it is not a private key")
    if isinstance(found, RSAKey) and found.raw_value.key_size < _MIN_RSA_BITS:
        raise _unusable_key(f"an RSA key needs {_MIN_RSA_BITS} bits")
    signing_algorithm(found)
    return found


def signing_algorithm(key: Key) -> str:
    """The algorithm that the key names, else the default of its type."""
    named = key.get("alg")
    if named is not None:
        if named not in _ALGORITHMS:
            raise _unusable_key("its alg is not a signature algorithm")
        return str(named)
    if isinstance(key, RSAKey):
        return "RS256"
    curve = str(key.get("crv")) if isinstance(key, ECKey | OKPKey) else ""
    if curve not in _CURVES:
        raise _unusable_key("its curve is not used for signatures")
    return _CURVES[curve]


def _from_pem(text: str) -> Key:
    if "-----BEGIN" not in text:
        raise ValueError("not PEM")
    for kind in _PEM_KINDS:
        try:
            return JWKRegistry.import_key(text, kind)
        except (JoseError, ValueError, TypeError):
            continue
    raise ValueError("an unknown type of key")


def _claims(client_id: str, audience: str, at: datetime) -> dict[str, Any]:
    now = int(at.timestamp())
    return {
        "iss": client_id,
        "sub": client_id,
        "aud": audience,
        "jti": secrets.token_urlsafe(16),
        "iat": now,
        "exp": now + _LIFETIME_S,
    }


def _unusable_key(why: str) -> Failure:
    return Failure(
        ErrorCode.CLIENT_REJECTED, f"the integration's key can't be used: {why}", field="client_key"
    )


def generate_client_secret(
    spec: ProviderSpec, client_id: str, params: Mapping[str, str], key: ClientKey | None, at: datetime
) -> Secret:
    """A client secret signed with the integration's key.

    Raises Failure CLIENT_REJECTED when the integration lacks the key or a parameter, or when the key
    can't sign with the definition's algorithm.
    """
    rule = spec.client_secret_generator
    assert rule is not None
    if key is None:
        why = f"the integration has no key to sign the client secret that {spec.name} requires"
        raise Failure(ErrorCode.CLIENT_REJECTED, why, provider=spec.name, field="client_key")
    try:
        values = {**checked_params(spec, params), "client_id": client_id}
        claims = {name: fill_template(text, values, spec) for name, text in rule.claims.items()}
        named = {name: fill_template(text, values, spec) for name, text in rule.headers.items()}
    except Failure as failure:  # the integration's admin repairs it
        raise Failure(ErrorCode.CLIENT_REJECTED, failure.detail, provider=spec.name) from None
    now = int(at.timestamp())
    times = {"iat": now, "exp": now + rule.lifetime_s}
    return Secret(sign_jwt(key, claims | times, alg=rule.alg, headers=named))


_MAX_CERTIFICATES = 10


def parse_client_certificate(certificate: str, private: Secret, now: datetime) -> ClientCertificate:
    """A certificate chain and its key.

    Raises Failure INVALID_REQUEST (field `client_certificate`) when they aren't PEM, have expired, or
    don't belong together.
    """
    try:
        chain = x509.load_pem_x509_certificates(certificate.encode())
    except ValueError:
        raise _unusable_certificate("the certificate is not PEM") from None
    if len(chain) > _MAX_CERTIFICATES:
        raise _unusable_certificate(f"more than {_MAX_CERTIFICATES} certificates")
    try:
        key = load_pem_private_key(private.reveal().encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # or encrypted
        raise _unusable_certificate("the private key is not PEM without a password") from None
    try:
        ours = chain[0].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        raise _unusable_certificate("the certificate's key has an unknown type") from None
    if key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != ours:
        raise _unusable_certificate("the private key is not the first certificate's")
    ends = min(each.not_valid_after_utc for each in chain)
    if ends <= now:
        raise _unusable_certificate("a certificate of the chain has expired")
    text = "".join(each.public_bytes(Encoding.PEM).decode() for each in chain)
    return ClientCertificate(certificate=text, private=private, expires_at=ends)


def _unusable_certificate(why: str) -> Failure:
    return Failure(
        ErrorCode.INVALID_REQUEST, f"The client certificate can't be used: {why}.", field="client_certificate"
    )
