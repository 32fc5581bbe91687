"""JOSE keys: those that tokens are bound to (RFC 9449), and the recipients of exports (RFC 7516)."""

import json
from typing import Any, NoReturn

from joserfc import jwe, jwk
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from evergrant_server.core.connections.credentials import ProofKey
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret


def new_proof_key() -> ProofKey:
    """A new P-256 key, which every server with DPoP accepts (RFC 9449 section 4.2)."""
    key = ECKey.generate_key("P-256", private=True)
    public = {name: str(value) for name, value in key.as_dict(private=False).items()}
    return ProofKey(
        private=Secret(json.dumps(key.as_dict(private=True))),
        public={name: public[name] for name in ("kty", "crv", "x", "y")},
        thumbprint=key.thumbprint(),
    )


ALGORITHM = "ECDH-ES+A256KW"  # RFC 7518 section 4.6
ENCRYPTION = "A256GCM"  # RFC 7518 section 5.3
_ALLOWED = [ALGORITHM, ENCRYPTION]
_CURVES = {"OKP": ("X25519",), "EC": ("P-256",)}
_PRIVATE = ("d", "p", "q", "dp", "dq", "qi", "k")


class Recipient:
    """A recipient's public key. What is sealed to it only the owner of the private key can open."""

    def __init__(self, key: jwk.OKPKey | jwk.ECKey) -> None:
        self._key = key
        self.thumbprint = key.thumbprint()  # RFC 7638

    @classmethod
    def parse(cls, document: dict[str, Any] | str) -> "Recipient":
        """A public X25519 or P-256 key, as a JWK (RFC 7517, RFC 8037) or in PEM.

        Raises Failure INVALID_REQUEST; what was given is never quoted: it may be the private half.
        """
        key = _of_pem(document) if isinstance(document, str) else _of_jwk(document)
        if key.is_private:
            _refuse("is a private key: give the public half, and keep this one to yourself")
        if key.curve_name not in _CURVES[key.key_type]:
            _refuse("needs the curve X25519 or P-256")
        recipient = cls(key)
        try:
            recipient.seal(Secret("tried"))  # RFC 7748 section 6.1: no secret with a point of low order
        except (JoseError, ValueError):
            _refuse("can't be sealed to")
        return recipient

    @property
    def jwk(self) -> dict[str, str]:
        """The public key, as it may be kept."""
        return {name: str(value) for name, value in self._key.as_dict(private=False).items()}

    def seal(self, value: Secret) -> str:
        """A compact JWE (RFC 7516 section 7.1) with a fresh ephemeral key."""
        header = {"alg": ALGORITHM, "enc": ENCRYPTION, "kid": self.thumbprint, "cty": "json"}
        return jwe.encrypt_compact(header, value.reveal().encode(), self._key, algorithms=_ALLOWED)


def open_sealed_to(text: str, private: str) -> Secret:
    """What `Recipient.seal` sealed; `private` is a JWK in JSON. Raises Failure INVALID_REQUEST."""
    try:
        document = json.loads(private)
        kind = jwk.OKPKey if document.get("kty") == "OKP" else jwk.ECKey
        key = kind.import_key(document)
        opened = jwe.decrypt_compact(text.strip(), key, algorithms=_ALLOWED)
    except (JoseError, ValueError, KeyError, TypeError, AttributeError):
        why = "it isn't sealed to this private key, or was altered"
        raise Failure(ErrorCode.INVALID_REQUEST, why, field="key") from None
    return Secret((opened.plaintext or b"").decode())


def _of_jwk(document: dict[str, Any]) -> jwk.OKPKey | jwk.ECKey:
    if any(name in document for name in _PRIVATE):
        _refuse("is a private key: give the public half, and keep this one to yourself")
    kind = document.get("kty")
    bare: dict[str, str | list[str]] = {
        name: document[name] for name in ("kty", "crv", "x", "y") if isinstance(document.get(name), str)
    }
    if kind not in _CURVES or any(len(value) > 100 for value in bare.values()):
        _refuse("is no JWK of an X25519 or P-256 key")
    try:
        return jwk.OKPKey.import_key(bare) if kind == "OKP" else jwk.ECKey.import_key(bare)
    except (JoseError, ValueError, KeyError, TypeError):
        _refuse("is no JWK of an X25519 or P-256 key")


def _of_pem(pem: str) -> jwk.OKPKey | jwk.ECKey:
    for kind in (jwk.OKPKey, jwk.ECKey):
        try:
            return kind.import_key(pem)
        except (JoseError, ValueError, TypeError):
            continue
    _refuse("is no PEM of an X25519 or P-256 key")


def _refuse(why: str) -> NoReturn:
    raise Failure(ErrorCode.INVALID_REQUEST, f"public_key: {why}", field="public_key") from None
