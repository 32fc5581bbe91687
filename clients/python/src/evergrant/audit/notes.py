"""Signed notes, checkpoints and proofs of a transparency log, as C2SP writes them down.

Formats: c2sp.org/signed-note, tlog-checkpoint, tlog-cosignature (Ed25519), tlog-proof@v1. Everything that is
read here comes from a log that isn't trusted, or from a file: what isn't exactly of the format is refused.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from evergrant.audit.tree import HASH_BYTES, ProofError, require_consistent, root_of_inclusion

PLAIN, COSIGNATURE = 0x01, 0x04  # types of signatures, both Ed25519
PROOF_HEADER = "c2sp.org/tlog-proof@v1"
_DASH = "\u2014 "
_MOST_SIGNATURES = 100
_MOST_HASHES = 63  # of a path: no log has 2**63 records
_NAME = re.compile(r"[^\s+]+")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")


class NoteError(ValueError):
    """A note, checkpoint or proof isn't well formed, or isn't signed by who should have."""


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """The public key of a log or a witness, with its name and the type of its signatures."""

    name: str
    type: int
    public: bytes

    @classmethod
    def parse(cls, text: str) -> "VerifierKey":
        """From `<name>+<id in hex>+<base64>`. Raises NoteError."""
        name, _, rest = text.strip().partition("+")
        id, _, encoded = rest.partition("+")
        key = _decoded(encoded, "a verifier key")
        if not _NAME.fullmatch(name) or len(key) != 1 + 32 or key[0] not in (PLAIN, COSIGNATURE):
            raise NoteError("a verifier key is <name>+<id>+<base64 of an Ed25519 key>")
        parsed = cls(name, key[0], key[1:])
        if parsed.id.hex() != id:
            raise NoteError(f"the verifier key of {name} has another id than its key")
        return parsed

    @property
    def id(self) -> bytes:
        """Which of the keys of this name it is: four bytes."""
        return key_id(self.name, self.type, self.public)

    def __str__(self) -> str:
        key = base64.b64encode(bytes([self.type]) + self.public).decode()
        return f"{self.name}+{self.id.hex()}+{key}"


@dataclass(frozen=True, slots=True)
class Signature:
    """One line of signature: whose, and what it says."""

    name: str
    key_id: bytes
    value: bytes

    def __str__(self) -> str:
        return f"{_DASH}{self.name} {base64.b64encode(self.key_id + self.value).decode()}\n"


@dataclass(frozen=True, slots=True)
class Note:
    """A text that ends with a newline, and its signatures, none of which is checked yet."""

    text: str
    signatures: tuple[Signature, ...]

    @classmethod
    def parse(cls, raw: str) -> "Note":
        """Raises NoteError."""
        if _CONTROL.search(raw):
            raise NoteError("a note has no control characters")
        text, separator, lines = raw.rpartition("\n\n")
        if not separator or not lines.endswith("\n"):
            raise NoteError("a note is a text, an empty line and lines of signatures")
        signatures = tuple(_signature(line) for line in lines[:-1].split("\n"))
        if len(signatures) > _MOST_SIGNATURES:
            raise NoteError(f"a note has at most {_MOST_SIGNATURES} signatures")
        return cls(text + "\n", signatures)

    def __str__(self) -> str:
        return f"{self.text}\n{''.join(map(str, self.signatures))}"

    def signed_by(self, keys: Iterable[VerifierKey]) -> dict[str, int | None]:
        """The names of these keys that have signed the text; of a cosignature its time (POSIX seconds).

        Signatures of other keys are ignored. Raises NoteError for a wrong signature of one of them.
        """
        known = {(key.name, key.id): key for key in keys}
        signed: dict[str, int | None] = {}
        for signature in self.signatures:
            key = known.get((signature.name, signature.key_id))
            if key is not None:
                signed[key.name] = _verified(self.text, signature, key)
        return signed


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The head of a log's tree, whose note isn't checked yet."""

    origin: str
    size: int
    root: bytes
    note: Note

    @classmethod
    def parse(cls, raw: str) -> "Checkpoint":
        """Raises NoteError."""
        note = Note.parse(raw)
        lines = note.text[:-1].split("\n")
        if len(lines) < 3 or not all(lines):
            raise NoteError("a checkpoint has an origin, a size and a root")
        return cls(lines[0], _number(lines[1], "the size"), _hash(lines[2], "the root"), note)

    def require_signed(self, log: VerifierKey) -> None:
        """Raise NoteError unless this log has signed it, under its own name."""
        if self.origin != log.name:
            raise NoteError(f"the checkpoint is of the log {self.origin}, not of {log.name}")
        if not self.note.signed_by([log]):
            raise NoteError(f"{log.name} hasn't signed the checkpoint with the key {log.id.hex()}")

    def require_extends(self, older: "Checkpoint", path: Sequence[str]) -> None:
        """Raise NoteError or ProofError unless this tree only appends to that of the same log.

        `path` is the proof's hashes in base64.
        """
        if self.origin != older.origin:
            raise NoteError(f"the checkpoint is of the log {self.origin}, not of {older.origin}")
        hashes = [_hash(line, f"line {number} of the proof") for line, number in zip(path, count(1))]
        require_consistent(older.size, older.root, self.size, self.root, hashes)


@dataclass(frozen=True, slots=True)
class LogProof:
    """That a log has a record: its index, the path to the root, and the checkpoint."""

    index: int
    path: tuple[bytes, ...]
    checkpoint: Checkpoint
    extra: bytes | None = None

    @classmethod
    def parse(cls, raw: str) -> "LogProof":
        """Raises NoteError."""
        head, _, note = raw.partition("\n\n")
        lines = head.split("\n")
        if lines.pop(0) != PROOF_HEADER:
            raise NoteError(f"a proof begins with {PROOF_HEADER}")
        extra = None
        if lines and lines[0].startswith("extra "):
            extra = _decoded(lines.pop(0).removeprefix("extra "), "the line extra")
        if not lines or not lines[0].startswith("index "):
            raise NoteError("a proof names an index")
        index = _number(lines.pop(0).removeprefix("index "), "the index")
        if len(lines) > _MOST_HASHES:
            raise NoteError(f"a proof has at most {_MOST_HASHES} hashes")
        path = tuple(_hash(line, f"line {number} of the proof") for line, number in zip(lines, count(1)))
        return cls(index, path, Checkpoint.parse(note), extra)

    def __str__(self) -> str:
        extra = "" if self.extra is None else f"extra {base64.b64encode(self.extra).decode()}\n"
        return f"{PROOF_HEADER}\n{extra}index {self.index}\n{hash_lines(self.path)}\n{self.checkpoint.note}"

    def require_has(self, leaf: bytes, log: VerifierKey) -> None:
        """Raise NoteError or ProofError unless this log says that it has the leaf at the index."""
        self.checkpoint.require_signed(log)
        root = root_of_inclusion(leaf, self.index, self.checkpoint.size, self.path)
        if root != self.checkpoint.root:
            raise ProofError(f"{log.name} has another record at {self.index}, or none like this")


def key_id(name: str, type: int, public: bytes) -> bytes:
    """The id of a key in its signatures, as C2SP recommends it."""
    return hashlib.sha256(name.encode() + b"\n" + bytes([type]) + public).digest()[:4]


def hash_lines(hashes: Sequence[bytes]) -> str:
    """Each hash in base64, with a newline behind it."""
    return "".join(f"{base64.b64encode(value).decode()}\n" for value in hashes)


def cosign(checkpoint: Checkpoint, name: str, private: Ed25519PrivateKey, at: int) -> Signature:
    """The witness's cosignature (type 0x04) of a checkpoint that it has found consistent, at this time (POSIX
    seconds)."""
    value = at.to_bytes(8) + private.sign(_cosigned(checkpoint.note.text, at))
    return Signature(name, key_id(name, COSIGNATURE, private.public_key().public_bytes_raw()), value)


def _cosigned(text: str, at: int) -> bytes:
    return f"cosignature/v1\ntime {at}\n{text}".encode()


def _verified(text: str, signature: Signature, key: VerifierKey) -> int | None:
    """The time of a cosignature. Raises NoteError for a signature that isn't of this key and text."""
    signed, at, value = text.encode(), None, signature.value
    if key.type == COSIGNATURE:
        at, value = int.from_bytes(value[:8]), value[8:]
        signed = _cosigned(text, at)
    try:
        Ed25519PublicKey.from_public_bytes(key.public).verify(value, signed)
    except InvalidSignature:
        raise NoteError(f"the signature of {key.name} is wrong") from None
    return at


def _signature(line: str) -> Signature:
    name, _, encoded = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not _NAME.fullmatch(name):
        raise NoteError("a line of signature is a dash, a name and base64")
    value = _decoded(encoded, "a signature")
    if len(value) <= 4:
        raise NoteError("a signature is longer than the id of its key")
    return Signature(name, value[:4], value[4:])


def _hash(text: str, place: str) -> bytes:
    value = _decoded(text, place)
    if len(value) != HASH_BYTES:
        raise NoteError(f"{place} has {len(value)} bytes, a hash has {HASH_BYTES}")
    return value


def _number(text: str, place: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise NoteError(f"{place} is no decimal number")
    return int(text)


def _decoded(text: str, place: str) -> bytes:
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise NoteError(f"{place} is no base64") from None
    if base64.b64encode(value).decode() != text:
        raise NoteError(f"{place} is no base64 that this text alone encodes to")
    return value
