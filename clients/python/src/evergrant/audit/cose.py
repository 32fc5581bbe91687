"""A receipt in COSE (RFC 9942), checked offline as the other form is (`receipts`).

Evergrant's is a COSE_Sign1 whose payload, the root of the record's tree, is detached. Beside its signature
stand the record's body and leaf, the head, and the head's own receipt: the signature of that covers them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from evergrant.audit.notes import NoteError, VerifierKey
from evergrant.audit.receipts import Flaw, Head, ReceiptError, Verified, body_of
from evergrant.audit.tree import HASH_BYTES, ProofError, leaf_hash, root_of_inclusion

_MOST_HASHES, _DEEPEST = 63, 6
# RFC 9052, RFC 9864, RFC 9597, RFC 9942
_ALG, _KID, _CWT_CLAIMS, _VDS, _VDP, _INCLUSION_PROOFS = 1, 4, 15, 395, 396, -1
_EDDSA_ED25519, _RFC9162_SHA256, _ISSUER, _SUBJECT = -19, 1, 1, 2


class _Tag18(NamedTuple):
    content: Any


@dataclass(frozen=True)
class _Proof:
    """One COSE_Sign1, nothing of which is checked but its shape."""

    protected: bytes
    headers: Mapping[Any, Any]
    beside: Mapping[Any, Any]
    size: int
    index: int
    path: tuple[bytes, ...]
    signature: bytes

    @property
    def subject(self) -> str:
        return self.headers[_CWT_CLAIMS][_SUBJECT]


def verify_cose(
    raw: bytes, log: VerifierKey, *, tenant: str | None = None, record: str | None = None
) -> Verified:
    """What the receipt shows. Raises ReceiptError; arguments are those of `Receipt.verified`.

    It has no signatures of witnesses: those stand in the other form.
    """
    proof = _parsed(raw, Flaw.PROOF)
    match proof.beside:
        case {
            "evergrant-body": bytes() | None as body,
            "evergrant-leaf": bytes() as leaf,
            "evergrant-head": [bytes() as head_text, bytes() as head_receipt],
        } if _is_hash(leaf):
            pass
        case _:
            raise ReceiptError(Flaw.FORMAT, "beside the proof belong its record, its leaf and its head")
    name, of_tenant, shard = _names(proof, log)
    place = f"{shard}/{proof.index}"
    if tenant not in (None, of_tenant):
        raise ReceiptError(Flaw.TENANT, f"it is of the tenant {of_tenant}, not of {tenant}", place)
    if record not in (None, place):
        raise ReceiptError(Flaw.RECORD, f"it is of the record {place}, not of {record}", place)
    content = None if body is None else body_of(body, leaf, place)
    root = _signed_root(proof, leaf, log, name, Flaw.PROOF, place)
    try:
        head = Head.parse(head_text.decode())
    except (NoteError, UnicodeDecodeError) as error:
        raise ReceiptError(Flaw.HEAD, str(error), place) from None
    if (head.tenant, head.shard, head.size, head.root) != (of_tenant, shard, proof.size, root):
        raise ReceiptError(Flaw.HEAD, "it isn't the one that the record's proof leads to", place)
    outer = _parsed(head_receipt, Flaw.HEAD_PROOF)
    _signed_root(outer, leaf_hash(head_text), log, log.name, Flaw.HEAD_PROOF, place)
    return Verified(of_tenant, shard, proof.index, content, head.at, outer.size, {})


def _names(proof: _Proof, log: VerifierKey) -> tuple[str, str, str]:
    """The name of the record's tree, its tenant and its shard, of which the signature has the first."""
    claims = proof.headers[_CWT_CLAIMS]
    rest = proof.subject.removeprefix(f"{log.name}/")
    tenant, slash, shard = rest.partition("/")
    if claims[_ISSUER] != log.name or rest == proof.subject or not slash or not tenant or not shard:
        raise ReceiptError(Flaw.INSTALLATION, f"it is of {proof.subject}, not of a shard of {log.name}")
    return proof.subject, tenant, shard


def _signed_root(proof: _Proof, leaf: bytes, log: VerifierKey, name: str, kind: Flaw, record: str) -> bytes:
    """The root that the proof leads to from the leaf, if the log has signed it under this name."""
    if (proof.headers[_CWT_CLAIMS][_ISSUER], proof.subject) != (log.name, name):
        raise ReceiptError(Flaw.INSTALLATION, f"{kind} is of {proof.subject}, not of {name}", record)
    try:
        root = root_of_inclusion(leaf, proof.index, proof.size, proof.path)
    except ProofError as error:
        raise ReceiptError(kind, str(error), record) from None
    if proof.headers[_KID] != log.id:
        raise ReceiptError(Flaw.SIGNATURE, f"of {kind}: it is of another key than {log.id.hex()}", record)
    signed = _array(_text("Signature1"), _bytes(proof.protected), _bytes(b""), _bytes(root))
    try:
        Ed25519PublicKey.from_public_bytes(log.public).verify(proof.signature, signed)
    except InvalidSignature:
        why = f"of {kind}: {log.name} has signed another tree, or the record isn't at {proof.index}"
        raise ReceiptError(Flaw.SIGNATURE, why, record) from None
    return root


def _parsed(raw: bytes, kind: Flaw) -> _Proof:
    """Raises ReceiptError for what isn't a receipt of inclusion by Ed25519 and RFC 9162's SHA-256."""
    try:
        item = _decoded(raw)
        if not isinstance(item, _Tag18):
            raise ValueError("it is no COSE_Sign1")
        protected, beside, payload, signature = item.content
        if payload is not None or [type(protected), type(beside), type(signature)] != [bytes, dict, bytes]:
            raise ValueError("it is no COSE_Sign1 with a detached payload")
        return _of_parts(protected, beside, signature)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise ReceiptError(Flaw.FORMAT, f"{kind} is no COSE receipt: {error}") from None


def _of_parts(protected: bytes, beside: dict[Any, Any], signature: bytes) -> _Proof:
    headers = _decoded(protected)
    if (headers[_ALG], headers[_VDS]) != (_EDDSA_ED25519, _RFC9162_SHA256):
        raise ValueError("it isn't signed with Ed25519 over a tree of RFC 9162")
    match headers:
        case {4: bytes(), 15: {1: str(), 2: str()}}:
            pass
        case _:
            raise ValueError("it says neither whose it is nor what it is of")
    (proof,) = beside[_VDP][_INCLUSION_PROOFS]
    size, index, path = _decoded(proof)
    if type(size) is not int or type(index) is not int or not 0 <= index < size:
        raise ValueError("its index is beyond its tree")
    if len(path) > _MOST_HASHES or not all(map(_is_hash, path)):
        raise ValueError("its path isn't made of hashes")
    return _Proof(protected, headers, beside, size, index, tuple(path), signature)


def _is_hash(value: object) -> bool:
    return isinstance(value, bytes) and len(value) == HASH_BYTES


# --- CBOR (RFC 8949), as far as a receipt needs it ---------------------------------------


def _decoded(raw: bytes) -> Any:
    """The one item of these bytes, in its deterministic encoding. Raises ValueError."""
    value, rest = _item(raw, 0)
    if rest:
        raise ValueError("bytes follow it")
    return value


def _item(raw: bytes, depth: int) -> tuple[Any, bytes]:
    if depth > _DEEPEST:
        raise ValueError("it is nested too deeply")
    major, number, rest = _head_of(raw)
    match major:
        case 0:
            return number, rest
        case 1:
            return -1 - number, rest
        case 2 | 3:
            if number > len(rest):
                raise ValueError("it ends too early")
            return rest[:number] if major == 2 else rest[:number].decode(), rest[number:]
        case 4 | 5:
            items: list[Any] = []
            for _ in range(number * (major - 3)):
                item, rest = _item(rest, depth + 1)
                items.append(item)
            return (items if major == 4 else _map(items)), rest
        case 6 if number == 18:
            item, rest = _item(rest, depth + 1)
            return _Tag18(item), rest
        case 7 if number == 22:
            return None, rest
        case _:
            raise ValueError("a receipt has nothing of this type")


def _map(items: list[Any]) -> dict[Any, Any]:
    pairs = dict(zip(items[::2], items[1::2], strict=True))
    if len(pairs) * 2 != len(items):
        raise ValueError("a name is there twice")
    return pairs


def _head_of(raw: bytes) -> tuple[int, int, bytes]:
    """The major type, the number, and what follows. Raises ValueError."""
    if not raw:
        raise ValueError("it ends too early")
    major, number, rest = raw[0] >> 5, raw[0] & 31, raw[1:]
    if number > 23:
        width = 1 << (number - 24)
        if number > 27 or len(rest) < width:
            raise ValueError("it has no definite length, or ends too early")
        number, rest = int.from_bytes(rest[:width]), rest[width:]
        if number < (24 if width == 1 else 1 << (4 * width)):
            raise ValueError("a number isn't in its shortest form")
    return major, number, rest


def _array(*items: bytes) -> bytes:
    return bytes([4 << 5 | len(items)]) + b"".join(items)


def _bytes(value: bytes) -> bytes:
    return _length(2, len(value)) + value


def _text(value: str) -> bytes:
    return _length(3, len(value)) + value.encode()


def _length(major: int, number: int) -> bytes:
    if number < 24:
        return bytes([major << 5 | number])
    return bytes([major << 5 | 24, number]) if number < 256 else bytes([major << 5 | 25]) + number.to_bytes(2)
