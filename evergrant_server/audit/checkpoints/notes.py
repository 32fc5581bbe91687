"""What the log signs: checkpoints of its trees, as C2SP's notes and as COSE receipts (RFC 9942).

Formats: c2sp.org/signed-note, tlog-checkpoint and tlog-proof@v1. A checkpoint of the heads log has the name
of the installation, one of a shard's tree that name with tenant and shard behind it; the key is the same.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from evergrant_server.audit.merkle_tree import Frontier

_ED25519, _COSIGNATURE = 0x01, 0x04
_DASH = "\u2014"
# of COSE (RFC 9052, RFC 9864) and of its receipts (RFC 9942)
_SIGN1, _ALG, _KID, _CWT_CLAIMS, _VDS, _VDP = 18, 1, 4, 15, 395, 396
_EDDSA_ED25519, _RFC9162_SHA256, _INCLUSION_PROOFS = -19, 1, -1
_ISSUER, _SUBJECT = 1, 2  # of the claims (RFC 9597)


class Signed(NamedTuple):
    """A tree's head with the log's signatures: a note, and the signature of a receipt in COSE."""

    note: str
    cose: bytes


class LogSigner(NamedTuple):
    """The log's name and its private key, which only a worker has."""

    name: str
    private: Ed25519PrivateKey

    def sign(self, tree: "TreeName", frontier: Frontier) -> Signed:
        """The checkpoint of this tree as it is now."""
        name, root = tree.of(self.name), frontier.root
        note = self._note(name, f"{name}\n{frontier.size}\n{_text(root)}\n")
        return Signed(note, self.private.sign(_to_be_signed(self.name, tree, self.public, root)))

    def note(self, text: str) -> str:
        """The text, which ends with a newline and is no checkpoint, signed under the log's name."""
        return self._note(self.name, text)

    @property
    def public(self) -> bytes:
        return self.private.public_key().public_bytes_raw()

    def _note(self, name: str, text: str) -> str:
        signature = _text(key_id(name, self.public) + self.private.sign(text.encode()))
        return f"{text}\n{_DASH} {name} {signature}\n"


class TreeName(NamedTuple):
    """Which tree: a shard's of a tenant, or without them the heads log."""

    tenant: str = ""
    shard: str = ""

    def of(self, log: str) -> str:
        """Its name as a log of its own."""
        return f"{log}/{self.tenant}/{self.shard}" if self.tenant else log


HEADS_LOG = TreeName()


class WitnessKey(NamedTuple):
    """A witness's public key, and the id of it in its signatures (c2sp.org/tlog-cosignature)."""

    name: str
    id: bytes
    public: bytes

    @classmethod
    def parse(cls, text: str) -> "WitnessKey":
        """Raises ValueError."""
        name, id, encoded = text.strip().split("+", 2)
        raw = base64.b64decode(encoded, validate=True)
        key = cls(name, hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4], raw[1:])
        if len(raw) != 33 or raw[0] != _COSIGNATURE or key.id.hex() != id:
            raise ValueError("is no key of a witness: <name>+<id>+<base64>, as the witness prints it")
        return key

    def has_signed(self, note: str, line: str) -> bool:
        """Whether the line is this witness's signature of the note's text."""
        dash, name, encoded = (*line.removesuffix("\n").split(" "), "", "", "")[:3]
        try:
            value = base64.b64decode(encoded, validate=True)
            text = note[: note.index("\n\n") + 1]
            signed = f"cosignature/v1\ntime {int.from_bytes(value[4:12])}\n{text}".encode()
            Ed25519PublicKey.from_public_bytes(self.public).verify(value[12:], signed)
        except (ValueError, InvalidSignature):
            return False
        return (dash, name, value[:4]) == (_DASH, self.name, self.id)


def verifier_key(name: str, public: bytes) -> str:
    """The public key as clients and witnesses are given it (`<name>+<id>+<base64>`)."""
    return f"{name}+{key_id(name, public).hex()}+{_text(bytes([_ED25519]) + public)}"


def key_id(name: str, public: bytes) -> bytes:
    """Which of the keys of this name it is: four bytes."""
    return hashlib.sha256(name.encode() + b"\n" + bytes([_ED25519]) + public).digest()[:4]


def log_proof(index: int, path: Sequence[bytes], note: str) -> str:
    """That the tree of this checkpoint has a record at `index` (tlog-proof@v1)."""
    return f"c2sp.org/tlog-proof@v1\nindex {index}\n{hash_lines(path)}\n{note}"


def hash_lines(hashes: Sequence[bytes]) -> str:
    """Each hash in base64, with a newline behind it."""
    return "".join(f"{_text(value)}\n" for value in hashes)


def cose_receipt(
    log: str,
    public: bytes,
    tree: TreeName,
    size: int,
    index: int,
    path: Sequence[bytes],
    signature: bytes,
    beside: Mapping[str, object],
) -> bytes:
    """A receipt of inclusion (RFC 9942 section 5.2): a COSE_Sign1 whose payload, the root, is detached.

    `beside` are further headers, which nobody has signed.
    """
    proof = cbor([size, index, list(path)])
    unprotected = {_VDP: {_INCLUSION_PROOFS: [proof]}, **beside}
    return _head(6, _SIGN1) + cbor([_protected(log, tree, public), unprotected, None, signature])


def _protected(log: str, tree: TreeName, public: bytes) -> bytes:
    """Who has signed, and of which tree: what a receipt of another one can't say."""
    claims = {_ISSUER: log, _SUBJECT: tree.of(log)}
    kid = key_id(log, public)
    return cbor({_ALG: _EDDSA_ED25519, _KID: kid, _CWT_CLAIMS: claims, _VDS: _RFC9162_SHA256})


def _to_be_signed(log: str, tree: TreeName, public: bytes, root: bytes) -> bytes:
    """The Sig_structure of RFC 9052 section 4.4."""
    return cbor(["Signature1", _protected(log, tree, public), b"", root])


def cbor(value: Any) -> bytes:
    """The deterministic encoding (RFC 8949 section 4.2) of what a receipt has."""
    match value:
        case None:
            return b"\xf6"
        case int():
            return _head(0, value) if value >= 0 else _head(1, -1 - value)
        case bytes():
            return _head(2, len(value)) + value
        case str():
            return _head(3, len(value.encode())) + value.encode()
        case Mapping():
            pairs = sorted((cbor(name), cbor(member)) for name, member in value.items())
            return _head(5, len(pairs)) + b"".join(name + member for name, member in pairs)
        case Sequence():
            return _head(4, len(value)) + b"".join(map(cbor, value))
        case _:
            raise TypeError(f"a receipt has no {type(value).__name__}")


def _head(major: int, number: int) -> bytes:
    for code, width in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if number < 24:
            return bytes([major << 5 | number])
        if number < 1 << (8 * width):
            return bytes([major << 5 | code]) + number.to_bytes(width)
    raise OverflowError("a receipt's numbers have at most 64 bits")


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()
