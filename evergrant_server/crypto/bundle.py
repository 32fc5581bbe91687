"""What a role derives, signs and verifies with: the part of a ring that is no root key.

Rows of authority are signed with Ed25519 (RFC 8032): a gateway verifies what API, workers and operators sign,
and signs with a key of its own, which few rows accept (ADR 0064).
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from evergrant_server.core.bounded import Bounded
from evergrant_server.core.errors import FAILURES, ErrorCode, Failure
from evergrant_server.crypto.envelope import SealingKey, encode_parts
from evergrant_server.crypto.key_services.port import KeyServiceFailure, ServicePurpose
from evergrant_server.crypto.keyfile import KeyFile


class Signer(StrEnum):
    """Whose key signed a row."""

    AUTHORITY = "authority"  # API, workers and operators
    GATEWAY = "gateway"


GATEWAY_WRAPPING = "key service gateway"  # with which the key file wraps a gateway's secrets
# what a gateway derives, alone: to find callers, to seal its own sessions, to sign as itself, and
# to page lists, whose rows are judged one by one
GATEWAY_SECRETS = frozenset(
    {"api keys", "api.cursor", "agent call", "connect link", "mcp request state", "mcp-session"}
    | {"audit head gateway", "request proof gateway", "sign gateway", GATEWAY_WRAPPING}
)
CELL_SECRETS = (
    "api keys",
)  # beside the key of hashes: what cells share, so that a tenant's rows mean the same
_MOST_VERIFIED = 20_000  # signatures that are remembered: about 5 MB
BUNDLE = "bundle"  # its place among what a ring lacks


class Bundle:
    """Hashes, derived secrets and signatures of one role.

    While the bundle isn't held, each method raises the failure with which it lacks.
    """

    def __init__(self, source: Path | str, signer: Signer) -> None:
        self.source = source
        self._signer = signer
        self._lacking: Mapping[str, Failure] = {}
        self._bundle: KeyFile | None = None
        self._forget_derived()

    def _hold_bundle(self, bundle: KeyFile | None) -> None:
        if not _is_same_bundle(self._bundle, bundle):
            self._bundle = bundle
            self._forget_derived()

    def _forget_derived(self) -> None:
        self._derived: dict[str, bytes] = {}
        self._verified = Bounded[str, bytes](_MOST_VERIFIED)
        for name in ("_api_keys", "_signing_key", "_public_keys"):
            self.__dict__.pop(name, None)

    def subject_hash(self, tenant: str, subject: str) -> str:
        """A keyed hash for search indexes: 128 bits of HMAC-SHA256 in hex, the same after a rotation."""
        message = encode_parts("subject", tenant, subject)
        return hmac.new(self._held_bundle().subject.reveal(), message, hashlib.sha256).hexdigest()[:32]

    def account_hash(self, tenant: str, integration: str, name: str, value: str) -> str:
        """A keyed hash of what a provider calls an account or token, as long as `subject_hash`."""
        message = encode_parts("account", tenant, integration, name, value)
        return hmac.new(self._held_bundle().subject.reveal(), message, hashlib.sha256).hexdigest()[:32]

    def api_key_mac(self, *parts: str) -> str:
        """The MAC of an API key's row and secret: HMAC-SHA256 in hex, the same after a rotation."""
        return hmac.digest(self._api_keys, encode_parts("api key", *parts), "sha256").hex()

    def token_mac(self, *parts: str) -> str:
        """The MAC of an access token's row and secret, as `api_key_mac`."""
        return hmac.digest(self._api_keys, encode_parts("access token", *parts), "sha256").hex()

    @cached_property
    def _api_keys(self) -> bytes:
        return self.derive("api keys")

    def derive(self, purpose: str) -> bytes:
        """32 bytes for one purpose (HKDF-SHA256, RFC 5869), the same for every role and rotation.

        Raises Failure KEY_UNAVAILABLE where the role is a gateway and the purpose none of GATEWAY_SECRETS.
        """
        secret = self._derived.get(purpose)
        if secret is None:
            secret = self._derived[purpose] = self._derive(purpose)
        return secret

    def _derive(self, purpose: str) -> bytes:
        bundle = self._held_bundle()
        key = bundle.derived.get(purpose)
        if key is None and bundle.derive is not None:
            return derived_key(bundle.derive, purpose)
        if key is None:
            raise Failure(
                ErrorCode.KEY_UNAVAILABLE, f"The {self._signer} role doesn't hold the secret {purpose!r}."
            )
        return key.reveal()

    def keyed_hash(self, purpose: str, *parts: str | int) -> str:
        """HMAC-SHA256 (RFC 2104) of these parts in hex, by the secret of `purpose`. Raises as `derive`."""
        return hmac.digest(self.derive(purpose), encode_parts(*parts), "sha256").hex()

    def sign(self, *parts: str | int) -> str:
        """This role's signature of these parts: `<signer>.<Ed25519, base64url>`."""
        signature = base64.urlsafe_b64encode(self._signing_key.sign(encode_parts(*parts)))
        return f"{self._signer}.{signature.decode().rstrip('=')}"

    def signer(self, signature: str | None, *parts: str | int) -> Signer | None:
        """Which key signed these parts; None for a wrong signature. Good ones are remembered."""
        if signature is None:
            return None
        content = encode_parts(*parts)
        digest = hashlib.blake2b(content, digest_size=16).digest()
        name, _, text = signature.partition(".")
        if self._verified.get(signature) == digest:
            return Signer(name)
        key = self._public_keys.get(name)
        if key is None or not _is_signature(key, text, content):
            return None
        self._verified[signature] = digest
        return Signer(name)

    @cached_property
    def _signing_key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.derive(f"sign {self._signer}"))

    @cached_property
    def _public_keys(self) -> dict[str, Ed25519PublicKey]:
        public = self._held_bundle().public
        keys = {name: Ed25519PublicKey.from_public_bytes(raw) for name, raw in public.items()}
        return keys or {
            signer.value: Ed25519PrivateKey.from_private_bytes(self.derive(f"sign {signer}")).public_key()
            for signer in Signer
        }

    def public_keys(self) -> dict[str, bytes]:
        """With which this installation's signatures are verified, by their signers."""
        return {name: key.public_bytes_raw() for name, key in self._public_keys.items()}

    def cell_check(self) -> str:
        """The same for cells that share their secrets, and for no others."""
        shared = (self._held_bundle().subject.reveal(), *(self.derive(name) for name in CELL_SECRETS))
        return hashlib.sha256(encode_parts("cells", *(part.hex() for part in shared))).hexdigest()

    def bundle_for(self, purpose: ServicePurpose) -> KeyFile:
        """What the key service wraps for a purpose without roots: for gateways, what this version derives."""
        bundle = self._held_bundle()
        return gateway_bundle(bundle) if purpose is ServicePurpose.GATEWAY else bundle

    def _held_bundle(self) -> KeyFile:
        if self._bundle is None:
            raise self._lack(BUNDLE)
        return self._bundle

    def _lack(self, name: str) -> Failure:
        """Why a key is lacking, as a caller is told: the names of the service's key and of the principal are
        the operator's (`KeyRing.require_all`)."""
        failure = self._lacking.get(name)
        if failure is None:
            what_for = "what this role signs with" if name == BUNDLE else f"the root key {name!r}"
            return Failure(ErrorCode.KEY_UNAVAILABLE, f"{self.source} holds no key for {what_for}.")
        if isinstance(failure, KeyServiceFailure):
            why = f"root_key {failure.row} wasn't unwrapped: {FAILURES[failure.code].meaning}"
            return Failure(failure.code, why, retry_after=failure.retry_after)
        return Failure(failure.code, failure.detail, retry_after=failure.retry_after, **failure.context)


def derived_key(key: SealingKey, purpose: str) -> bytes:
    """What `KeyRing.derive` makes of the key file's `derive`."""
    return hkdf(key, encode_parts("derive", purpose))


def gateway_bundle(file: KeyFile) -> KeyFile:
    """The file with what a gateway derives and verifies with in place of `derive`, from which all follows."""
    derive = file.derive
    if derive is None:
        return file
    seeds = {signer: derived_key(derive, f"sign {signer}") for signer in Signer}
    return replace(
        file,
        derive=None,
        derived={
            name: file.derived.get(name) or SealingKey(name, derived_key(derive, name))
            for name in sorted(GATEWAY_SECRETS)
        },
        public={
            signer.value: Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
            for signer, seed in seeds.items()
        },
    )


def cell_secrets(file: KeyFile) -> KeyFile:
    """What a new cell of this installation shares with it: the key of hashes, and that of secrets' MACs. It
    signs and opens nothing."""
    derive = file.derive
    assert derive is not None
    shared = {
        name: file.derived.get(name) or SealingKey(name, derived_key(derive, name)) for name in CELL_SECRETS
    }
    return KeyFile({}, file.subject, None, export=True, derived=shared)


def _is_same_bundle(one: KeyFile | None, two: KeyFile | None) -> bool:
    if one is None or two is None:
        return one is two
    keys = [(bundle.subject, bundle.derive, *bundle.derived.values()) for bundle in (one, two)]
    revealed = [[key and key.reveal() for key in bundle_keys] for bundle_keys in keys]
    return revealed[0] == revealed[1] and dict(one.public) == dict(two.public)


def _is_signature(key: Ed25519PublicKey, text: str, content: bytes) -> bool:
    try:
        key.verify(base64.urlsafe_b64decode(text + "=="), content)
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def hkdf(key: SealingKey, info: bytes) -> bytes:
    """32 bytes for one use of a key (HKDF-SHA256, RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(key.reveal())
