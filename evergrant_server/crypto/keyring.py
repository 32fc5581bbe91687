"""The key ring: the root keys one process holds, by purpose, and what may be done with them.

`store.sealing` chooses the key of a column. Rows of authority are signed with Ed25519 (RFC 8032): a gateway
verifies what API, workers and operators sign, and signs with a key of its own, which few rows accept
(ADR 0064).
"""

import base64
import binascii
import hashlib
import hmac
from dataclasses import replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from evergrant_server.core.bounded import Bounded
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.crypto import keyfile
from evergrant_server.crypto.envelope import (
    AssociatedData,
    Sealed,
    SealingKey,
    encode_parts,
    key_id_of,
    key_unavailable,
    new_sealing_key,
    open_sealed,
    seal,
)
from evergrant_server.crypto.keyfile import KeyFile, RootKeys


class KeyPurpose(StrEnum):
    """The purpose of a key. Keys of one purpose never open values of another."""

    LEASE = "lease"  # access tokens
    REFRESH = "refresh"  # refresh tokens and id tokens
    INTAKE = "intake"  # client secrets, verifiers, codes, connect links
    STORY = "story"  # what a connection's workflow writes into Temporal; under the roots of `lease`

    @property
    def of_roots(self) -> "KeyPurpose":
        """The purpose whose roots wrap the tenants' keys of this one.

        Every role writes messages to workflows, and holds `lease`: roots of their own would protect nothing
        (ADR 0103).
        """
        return KeyPurpose.LEASE if self is KeyPurpose.STORY else self


class Role(StrEnum):
    """The role of a process. Those that face the internet never hold keys of the refresh purpose."""

    API = "api"
    GATEWAY = "gateway"
    WORKER = "worker"
    OPERATOR = "operator"


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
_MOST_VERIFIED = 20_000  # signatures that are remembered: about 5 MB

ROOT_PURPOSES = (KeyPurpose.LEASE, KeyPurpose.REFRESH, KeyPurpose.INTAKE)  # each with roots of its own
PURPOSES_OF_ROLE: dict[Role, frozenset[KeyPurpose]] = {
    Role.API: frozenset({KeyPurpose.LEASE, KeyPurpose.INTAKE}),
    Role.GATEWAY: frozenset({KeyPurpose.LEASE}),
    Role.WORKER: frozenset(ROOT_PURPOSES),
    Role.OPERATOR: frozenset(ROOT_PURPOSES),
}


def widest_role(file: KeyFile) -> Role:
    """The role with the most keys that this key file is for."""
    if file.derive is None:
        return Role.GATEWAY
    return Role.OPERATOR if KeyPurpose.REFRESH in file.purposes else Role.API


class KeyRing:
    """Root keys of the purposes a role may use. Doesn't print; every failure names the place."""

    def __init__(self, path: Path, role: Role, file: KeyFile) -> None:
        """Use `open` or `create`: they check the file. Purposes the role may not use are dropped here."""
        self._path = path
        self.role = role
        self._file = _of_role(file, role)
        self._derived: dict[str, bytes] = {}
        self._verified = Bounded[str, bytes](_MOST_VERIFIED)
        self._signer = Signer.GATEWAY if role is Role.GATEWAY else Signer.AUTHORITY
        refresh = self._file.purposes.get(KeyPurpose.REFRESH)
        self._worker_mac_keys = {
            id: _hkdf(key, encode_parts("authority", "worker"))
            for id, key in (refresh.keys.items() if refresh else ())
        }

    @classmethod
    def open(cls, path: Path | str, role: Role) -> "KeyRing":
        """Read the key file for `role`.

        Raises Failure KEY_UNAVAILABLE, with a one-line repair, when the file is missing,
        open to others, malformed, weak, or lacks a purpose of the role.
        """
        path = Path(path)
        file = keyfile.read(path)
        missing = sorted(PURPOSES_OF_ROLE[role] - file.purposes.keys())
        if missing:
            repair = f"Use the full key file, or run with a role that needs no {missing[0]} purpose."
            raise keyfile.key_file_error(path, f"has no {missing[0]} purpose, which a {role} needs", repair)
        if file.derive is None and role is not Role.GATEWAY:
            repair = f"Use the full key file, or export one for the {role} role."
            raise keyfile.key_file_error(path, "is a gateway's, which signs for nobody else", repair)
        return cls(path, role, file)

    @classmethod
    def create(cls, path: Path | str, role: Role = Role.OPERATOR) -> "KeyRing":
        """Write a new key file (mode 0600, with all purposes) and open it for `role`.

        Raises Failure KEY_UNAVAILABLE when the file exists already or can't be written.
        """
        purposes = {purpose.value: _with_new_key(None) for purpose in ROOT_PURPOSES}
        file = KeyFile(purposes, new_sealing_key("subject"), new_sealing_key("derive"))
        keyfile.create(Path(path), file)
        return cls.open(path, role)

    def __repr__(self) -> str:
        return f"KeyRing({str(self._path)!r}, {self.role.value})"

    def holds(self, purpose: KeyPurpose) -> bool:
        return purpose.of_roots in self._file.purposes

    def export(self, path: Path | str, role: Role) -> None:
        """Write a new key file for `role` alone, for a host that must not hold the other purposes.

        It can't be rotated: rotate the full file and export again. Raises Failure
        KEY_UNAVAILABLE when the file exists or this ring lacks a purpose of the role.
        """
        missing = sorted(PURPOSES_OF_ROLE[role] - self._file.purposes.keys())
        if missing:
            why = f"A ring of the {self.role} role doesn't hold the {missing[0]} purpose."
            raise Failure(ErrorCode.KEY_UNAVAILABLE, why)
        keyfile.create(Path(path), replace(_of_role(self._file, role), export=True))

    def rotate(self, purpose: KeyPurpose) -> "KeyRing":
        """Add a new current root key to the file; what the old ones wrapped stays readable.

        Nothing is wrapped anew: an existing tenant's key stays under the older root, also for later values.
        Returns the ring as it is now. Other processes see the new key when they are
        restarted. Raises Failure KEY_UNAVAILABLE for an exported file.
        """
        with keyfile.file_lock(self._path):
            file = keyfile.read(self._path)
            if file.export or purpose not in self._file.purposes:
                raise keyfile.key_file_error(
                    self._path, "is an export, or this role may not rotate it", "Rotate the full key file."
                )
            file = replace(
                file, purposes={**file.purposes, purpose.value: _with_new_key(file.purposes[purpose])}
            )
            keyfile.rewrite(self._path, file)
        return KeyRing(self._path, self.role, file)

    def wrap(self, purpose: KeyPurpose, place: AssociatedData, key: SealingKey) -> Sealed:
        """Seal a tenant's key under the purpose's current root."""
        roots = self._roots(purpose, place)
        return seal(roots.keys[roots.current], place, key.reveal())

    def unwrap(self, purpose: KeyPurpose, place: AssociatedData, key_id: str, wrapped: bytes) -> SealingKey:
        """Open a tenant's key. Raises Failure KEY_UNAVAILABLE or SEAL_BROKEN naming its row."""
        root_id = key_id_of(wrapped, place)
        root = self._roots(purpose, place).keys.get(root_id)
        if root is None:
            raise key_unavailable(place, f"root key {root_id!r} of purpose {purpose} is not in the key ring")
        return SealingKey(key_id, open_sealed(root, place, wrapped))

    def current_root_id(self, purpose: KeyPurpose) -> str:
        """The id of the root key that seals in this purpose now."""
        return self._file.purposes[purpose.of_roots].current

    def subject_hash(self, tenant: str, subject: str) -> str:
        """A keyed hash for search indexes: 128 bits of HMAC-SHA256 in hex, the same after a rotation."""
        message = encode_parts("subject", tenant, subject)
        return hmac.new(self._file.subject.reveal(), message, hashlib.sha256).hexdigest()[:32]

    def account_hash(self, tenant: str, integration: str, name: str, value: str) -> str:
        """A keyed hash of what a provider calls an account or token, as long as `subject_hash`."""
        message = encode_parts("account", tenant, integration, name, value)
        return hmac.new(self._file.subject.reveal(), message, hashlib.sha256).hexdigest()[:32]

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
        if self._file.derive is not None:
            return derived_key(self._file.derive, purpose)
        key = self._file.derived.get(purpose)
        if key is None:
            raise Failure(
                ErrorCode.KEY_UNAVAILABLE, f"The {self.role} role doesn't hold the secret {purpose!r}."
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
        keys = {name: Ed25519PublicKey.from_public_bytes(raw) for name, raw in self._file.public.items()}
        return keys or {
            signer.value: Ed25519PrivateKey.from_private_bytes(self.derive(f"sign {signer}")).public_key()
            for signer in Signer
        }

    def worker_mac(self, *parts: str | int) -> str:
        """As `mac`, with a key of the refresh purpose's current root, which the API lacks: `<root id>.<hex>`.

        Raises Failure KEY_UNAVAILABLE without the refresh purpose.
        """
        if not self.holds(KeyPurpose.REFRESH):
            why = f"The {self.role} role doesn't hold the {KeyPurpose.REFRESH} purpose."
            raise Failure(ErrorCode.KEY_UNAVAILABLE, why)
        return self._worker_mac(self.current_root_id(KeyPurpose.REFRESH), *parts)

    def is_worker_mac(self, mac: str | None, *parts: str | int) -> bool:
        """True when a worker made `mac` of these parts, before or after a rotation."""
        root_id = (mac or "").rpartition(".")[0]
        if mac is None or root_id not in self._worker_mac_keys:
            return False
        return hmac.compare_digest(self._worker_mac(root_id, *parts), mac)

    def _worker_mac(self, root_id: str, *parts: str | int) -> str:
        digest = hmac.digest(self._worker_mac_keys[root_id], encode_parts(*parts), "sha256")
        return f"{root_id}.{digest.hex()}"

    def _roots(self, purpose: KeyPurpose, place: AssociatedData) -> RootKeys:
        roots = self._file.purposes.get(purpose.of_roots)
        if roots is None:
            raise key_unavailable(place, f"the {self.role} role doesn't hold the {purpose} purpose")
        return roots


def derived_key(key: SealingKey, purpose: str) -> bytes:
    """What `KeyRing.derive` makes of the key file's `derive`."""
    return _hkdf(key, encode_parts("derive", purpose))


def _of_role(file: KeyFile, role: Role) -> KeyFile:
    """What of the file a role may use."""
    purposes = {purpose.value: file.purposes[purpose] for purpose in sorted(PURPOSES_OF_ROLE[role])}
    file = replace(file, purposes=purposes)
    if role is not Role.GATEWAY or file.derive is None:
        return file
    derive = file.derive
    seeds = {signer: derived_key(derive, f"sign {signer}") for signer in Signer}
    return replace(
        file,
        derive=None,
        derived={name: SealingKey(name, derived_key(derive, name)) for name in sorted(GATEWAY_SECRETS)},
        public={
            signer.value: Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
            for signer, seed in seeds.items()
        },
    )


def _is_signature(key: Ed25519PublicKey, text: str, content: bytes) -> bool:
    try:
        key.verify(base64.urlsafe_b64decode(text + "=="), content)
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def _hkdf(key: SealingKey, info: bytes) -> bytes:
    """32 bytes for one use of a key (HKDF-SHA256, RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(key.reveal())


def _with_new_key(roots: RootKeys | None) -> RootKeys:
    key = new_sealing_key("root")
    return RootKeys(key.id, {**(roots.keys if roots else {}), key.id: key})
