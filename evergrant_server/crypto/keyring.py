"""The key ring: the root keys one process holds, by purpose, and what may be done with them.

A ring holds its key file's keys for good. Those that a key service wraps it holds as long as its keeper says
(`hold`): without them every method that needs one raises the failure with which the service gave none.
`store.sealing` chooses the key of a column.
"""

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.crypto import keyfile
from evergrant_server.crypto.bundle import BUNDLE, GATEWAY_SECRETS, Bundle, Signer, gateway_bundle, hkdf
from evergrant_server.crypto.envelope import (
    AssociatedData,
    Hold,
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


class Role(StrEnum):
    """The role of a process. Those that face the internet never hold keys of the refresh purpose."""

    API = "api"
    GATEWAY = "gateway"
    WORKER = "worker"
    OPERATOR = "operator"


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


@dataclass(frozen=True)
class HeldKeys:
    """What a ring holds, replaced as one value: roots by purpose, and what the role signs and derives with.

    `lacking` says why it lacks a key: by the id of a root, or BUNDLE. `bundle_rows`: the ids of the rows that
    wrap the bundle and were unwrapped, the current one first.
    """

    roots: Mapping[str, RootKeys]
    bundle: KeyFile | None
    lacking: Mapping[str, Failure] = field(default_factory=dict[str, Failure])
    bundle_rows: tuple[str, ...] = ()


class KeyRing(Bundle):
    """Root keys of the purposes a role may use. Doesn't print; every failure names the place."""

    def __init__(self, source: Path | str, role: Role, file: KeyFile | None) -> None:
        """Use `open` or `create`: they check the file. Purposes the role may not use are dropped here.

        Without a file: a ring that holds nothing yet, whose keys `source` wraps.
        """
        super().__init__(source, Signer.GATEWAY if role is Role.GATEWAY else Signer.AUTHORITY)
        self.role = role
        self.when_outdated: Callable[[], None] = lambda: None  # set by who keeps the ring
        self.when_held: Callable[[], None] = lambda: None  # set by who reports what the ring holds
        self.when_held: Callable[[], None] = lambda: None  # set by who reports what it holds
        self._holds = {purpose: Hold() for purpose in PURPOSES_OF_ROLE[role]}
        self._roots: Mapping[str, RootKeys] = {
            purpose.value: RootKeys("", {}) for purpose in sorted(PURPOSES_OF_ROLE[role])
        }
        self.file = None if file is None else _of_role(file, role)
        self.hold(
            HeldKeys(self._roots, None) if self.file is None else HeldKeys(self.file.purposes, self.file)
        )

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
        lacking = sorted(GATEWAY_SECRETS - file.derived.keys()) if file.derive is None else []
        if lacking:
            repair = f"With the full key file: python -m evergrant_server keys export-gateway {path}"
            raise keyfile.key_file_error(
                path, f"is of an older version and lacks {', '.join(lacking)}", repair
            )
        return cls(path, role, file)

    @classmethod
    def create(
        cls, path: Path | str, role: Role = Role.OPERATOR, cell_of: KeyFile | None = None
    ) -> "KeyRing":
        """Write a new key file (mode 0600, with all purposes) and open it for `role`.

        `cell_of`: the secrets that it shares with other cells. Raises Failure KEY_UNAVAILABLE when the file
        exists already or can't be written.
        """
        keyfile.create(Path(path), new_key_file(cell_of))
        return cls.open(path, role)

    @classmethod
    def of_cell(cls, public: Mapping[str, bytes], worker_mac_keys: Mapping[str, bytes]) -> "KeyRing":
        """A ring that verifies what another cell has signed, and opens, signs and derives nothing."""
        ring = cls("another cell's keys", Role.WORKER, None)
        ring._public_keys = {name: Ed25519PublicKey.from_public_bytes(raw) for name, raw in public.items()}
        ring._worker_mac_keys = dict(worker_mac_keys)
        return ring

    def __repr__(self) -> str:
        return f"KeyRing({str(self.source)!r}, {self.role.value})"

    def hold(self, keys: HeldKeys) -> None:
        """Replace what the ring holds: of each purpose of its role the id of the current root, at least."""
        for purpose, hold in self._holds.items():
            if self._roots[purpose].keys.keys() - keys.roots[purpose].keys.keys():
                hold.over = True  # what was unwrapped with them opens no longer
                self._holds[purpose] = Hold()
        self._roots, self._lacking, self.bundle_rows = keys.roots, keys.lacking, keys.bundle_rows
        self._hold_bundle(keys.bundle)
        refresh = self._roots.get(KeyPurpose.REFRESH)
        self._worker_mac_keys = {
            id: hkdf(key, encode_parts("authority", "worker"))
            for id, key in (refresh.keys.items() if refresh else ())
        }
        self.when_held()

    def require(self, purpose: KeyPurpose) -> None:
        """Raise the Failure with which this role lacks the purpose's roots, or what it signs with, now."""
        roots = self._roots[purpose.of_roots]
        if self._bundle is None or roots.current not in roots.keys:
            raise self._lack(BUNDLE if self._bundle is None else roots.current)

    def require_sealing(self) -> None:
        """As `require_all`, for what the role signs with and the roots that seal."""
        currents = (self._roots[purpose].current for purpose in sorted(PURPOSES_OF_ROLE[self.role]))
        for failure in (self._lacking.get(name) for name in (BUNDLE, *currents)):
            if failure is not None:
                raise failure
        for purpose in sorted(PURPOSES_OF_ROLE[self.role]):
            self.require(purpose)

    def require_all(self) -> None:
        """Raise the Failure with which this ring lacks a key, with every name, for an operator."""
        for failure in self._lacking.values():
            raise failure
        for purpose in sorted(PURPOSES_OF_ROLE[self.role]):
            self.require(purpose)

    def root_ids(self) -> dict[KeyPurpose, tuple[str, ...]]:
        """The ids of the roots that this ring holds now."""
        return {
            KeyPurpose(purpose): tuple(sorted(roots.keys)) for purpose, roots in sorted(self._roots.items())
        }

    def hold_of(self, purpose: KeyPurpose) -> Hold:
        """What is over as soon as this ring lacks a root of the purpose that it holds now."""
        return self._holds[purpose.of_roots]

    def holds(self, purpose: KeyPurpose) -> bool:
        """Whether the role may use the purpose: also while a key service is away."""
        return purpose.of_roots in PURPOSES_OF_ROLE[self.role]

    def export(self, path: Path | str, role: Role) -> bool:
        """Write the key file for `role` alone, for a host that must not hold the other purposes.

        It can't be rotated: rotate the full file and export again, which replaces an older copy. False: the
        file is this copy already. Raises Failure KEY_UNAVAILABLE as `keyfile.put_export`, or when this ring
        lacks a purpose of the role.
        """
        if self.file is None:
            why = f"{self.source} wraps the keys: a process of the {role} role needs no key file."
            raise Failure(ErrorCode.KEY_UNAVAILABLE, why)
        missing = sorted(PURPOSES_OF_ROLE[role] - self.file.purposes.keys())
        if missing:
            why = f"A ring of the {self.role} role doesn't hold the {missing[0]} purpose."
            raise Failure(ErrorCode.KEY_UNAVAILABLE, why)
        return keyfile.put_export(Path(path), replace(_of_role(self.file, role), export=True))

    def rotate(self, purpose: KeyPurpose) -> "KeyRing":
        """Add a new current root key to the file; what the old ones wrapped stays readable.

        Nothing is wrapped anew: an existing tenant's key stays under the older root, also for later values.
        Returns the ring as it is now. Other processes see the new key when they are
        restarted. Raises Failure KEY_UNAVAILABLE for an exported file.
        """
        if self.file is None:
            raise Failure(ErrorCode.KEY_UNAVAILABLE, f"{self.source} wraps the keys: no file holds them.")
        path = Path(self.source)
        with keyfile.file_lock(path):
            file = keyfile.read(path)
            if file.export or not self.holds(purpose):
                raise keyfile.key_file_error(
                    path, "is an export, or this role may not rotate it", "Rotate the full key file."
                )
            file = replace(
                file, purposes={**file.purposes, purpose.value: _with_new_key(file.purposes[purpose])}
            )
            keyfile.rewrite(path, file)
        return KeyRing(path, self.role, file)

    def wrap(self, purpose: KeyPurpose, place: AssociatedData, key: SealingKey) -> Sealed:
        """Seal a tenant's key under the purpose's current root."""
        roots = self._roots_of(purpose, place)
        root = roots.keys.get(roots.current)
        if root is None:
            raise self._lack(roots.current)
        return seal(root, place, key.reveal())

    def unwrap(self, purpose: KeyPurpose, place: AssociatedData, key_id: str, wrapped: bytes) -> SealingKey:
        """Open a tenant's key. Raises Failure KEY_UNAVAILABLE or SEAL_BROKEN naming its row."""
        root_id = key_id_of(wrapped, place)
        root = self._roots_of(purpose, place).keys.get(root_id)
        if root is None and root_id in self._lacking:
            raise self._lack(root_id)
        if root is None:
            raise key_unavailable(place, f"root key {root_id!r} of purpose {purpose} is not in the key ring")
        return SealingKey(key_id, open_sealed(root, place, wrapped))

    def current_root_id(self, purpose: KeyPurpose) -> str:
        """The id of the root key that seals in this purpose now."""
        return self._roots[purpose.of_roots].current

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
        if root_id in self._lacking:
            raise self._lack(root_id)
        if mac is None or root_id not in self._worker_mac_keys:
            return False
        return hmac.compare_digest(self._worker_mac(root_id, *parts), mac)

    def worker_mac_keys(self) -> dict[str, bytes]:
        """With which another cell's workers verify what workers of this one wrote, by the ids of roots.

        Raises Failure KEY_UNAVAILABLE without the refresh purpose.
        """
        self.require(KeyPurpose.REFRESH)
        return dict(self._worker_mac_keys)

    def _worker_mac(self, root_id: str, *parts: str | int) -> str:
        if root_id not in self._worker_mac_keys:
            raise self._lack(root_id)
        digest = hmac.digest(self._worker_mac_keys[root_id], encode_parts(*parts), "sha256")
        return f"{root_id}.{digest.hex()}"

    def _roots_of(self, purpose: KeyPurpose, place: AssociatedData) -> RootKeys:
        roots = self._roots.get(purpose.of_roots)
        if roots is None:
            raise key_unavailable(place, f"the {self.role} role doesn't hold the {purpose} purpose")
        return roots


def new_key_file(cell_of: KeyFile | None = None) -> KeyFile:
    """New keys of every purpose, and new ones to sign and derive with; but what cells share is that of
    `cell_of`."""
    purposes = {purpose.value: _with_new_key(None) for purpose in ROOT_PURPOSES}
    subject = new_sealing_key("subject") if cell_of is None else cell_of.subject
    derived = {} if cell_of is None else cell_of.derived
    return KeyFile(purposes, subject, new_sealing_key("derive"), derived=derived)


def _of_role(file: KeyFile, role: Role) -> KeyFile:
    """What of the file a role may use."""
    purposes = {purpose.value: file.purposes[purpose] for purpose in sorted(PURPOSES_OF_ROLE[role])}
    file = replace(file, purposes=purposes)
    return gateway_bundle(file) if role is Role.GATEWAY else file


def _with_new_key(roots: RootKeys | None) -> RootKeys:
    key = new_sealing_key("root")
    return RootKeys(key.id, {**(roots.keys if roots else {}), key.id: key})
