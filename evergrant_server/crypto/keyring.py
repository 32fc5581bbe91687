"""The key ring: the root keys one process holds, by purpose, and what may be done with them.

`store.sealing` chooses the key of a column.
"""

import hashlib
import hmac
from dataclasses import replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

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


class Role(StrEnum):
    """The role of a process. Those that face the internet never hold keys of the refresh purpose."""

    API = "api"
    GATEWAY = "gateway"
    WORKER = "worker"
    OPERATOR = "operator"


PURPOSES_OF_ROLE: dict[Role, frozenset[KeyPurpose]] = {
    Role.API: frozenset({KeyPurpose.LEASE, KeyPurpose.INTAKE}),
    Role.GATEWAY: frozenset({KeyPurpose.LEASE}),
    Role.WORKER: frozenset(KeyPurpose),
    Role.OPERATOR: frozenset(KeyPurpose),
}


class KeyRing:
    """Root keys of the purposes a role may use. Doesn't print; every failure names the place."""

    def __init__(self, path: Path, role: Role, file: KeyFile) -> None:
        """Use `open` or `create`: they check the file. Purposes the role may not use are dropped here."""
        self._path = path
        self.role = role
        self._file = replace(
            file, purposes={purpose: file.purposes[purpose] for purpose in sorted(PURPOSES_OF_ROLE[role])}
        )
        self._mac_key = self.derive("authority")
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
        return cls(path, role, file)

    @classmethod
    def create(cls, path: Path | str, role: Role = Role.OPERATOR) -> "KeyRing":
        """Write a new key file (mode 0600, with all purposes) and open it for `role`.

        Raises Failure KEY_UNAVAILABLE when the file exists already or can't be written.
        """
        purposes = {purpose.value: _with_new_key(None) for purpose in KeyPurpose}
        file = KeyFile(purposes, new_sealing_key("subject"), new_sealing_key("derive"))
        keyfile.create(Path(path), file)
        return cls.open(path, role)

    def __repr__(self) -> str:
        return f"KeyRing({str(self._path)!r}, {self.role.value})"

    def holds(self, purpose: KeyPurpose) -> bool:
        return purpose in self._file.purposes

    def export(self, path: Path | str, role: Role) -> None:
        """Write a new key file for `role` alone, for a host that must not hold the other purposes.

        It can't be rotated: rotate the full file and export again. Raises Failure
        KEY_UNAVAILABLE when the file exists or this ring lacks a purpose of the role.
        """
        missing = sorted(PURPOSES_OF_ROLE[role] - self._file.purposes.keys())
        if missing:
            why = f"A ring of the {self.role} role doesn't hold the {missing[0]} purpose."
            raise Failure(ErrorCode.KEY_UNAVAILABLE, why)
        purposes = {purpose.value: self._file.purposes[purpose] for purpose in sorted(PURPOSES_OF_ROLE[role])}
        keyfile.create(Path(path), replace(self._file, purposes=purposes, export=True))

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
        return self._file.purposes[purpose].current

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
        """32 bytes for one purpose (HKDF-SHA256, RFC 5869), the same for every role and rotation."""
        return _hkdf(self._file.derive, encode_parts("derive", purpose))

    def mac(self, *parts: str | int) -> str:
        """An authenticator of these parts in hex (HMAC-SHA256, RFC 2104). Every role makes and checks it."""
        return hmac.digest(self._mac_key, encode_parts(*parts), "sha256").hex()

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
        roots = self._file.purposes.get(purpose)
        if roots is None:
            raise key_unavailable(place, f"the {self.role} role doesn't hold the {purpose} purpose")
        return roots


def _hkdf(key: SealingKey, info: bytes) -> bytes:
    """32 bytes for one use of a key (HKDF-SHA256, RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(key.reveal())


def _with_new_key(roots: RootKeys | None) -> RootKeys:
    key = new_sealing_key("root")
    return RootKeys(key.id, {**(roots.keys if roots else {}), key.id: key})
