"""A COSE receipt has the structure of RFC 9942, and its encoding is CBOR's deterministic one."""

from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from evergrant.audit.tree import root_of_inclusion

from evergrant_server.audit.checkpoints.notes import (
    HEADS_LOG,
    LogSigner,
    TreeName,
    cbor,
    cose_receipt,
    key_id,
)
from evergrant_server.audit.merkle_tree import Frontier, TileSlice, inclusion_path, leaf_hash, roots

NAME = "evergrant.example/audit"
KEY = Ed25519PrivateKey.from_private_bytes(bytes([5]) * 32)
PUBLIC = KEY.public_key().public_bytes_raw()
LEAVES = [leaf_hash(number.to_bytes(2)) for number in range(200)]
ACME = TreeName("acme", "main-3")


@pytest.mark.parametrize(
    ("value", "encoded"),
    [  # RFC 8949 appendix A
        (0, "00"), (23, "17"), (24, "1818"), (100, "1864"), (1000, "1903e8"), (1_000_000, "1a000f4240"),
        (1_000_000_000_000, "1b000000e8d4a51000"), (2**64 - 1, "1bffffffffffffffff"), (-1, "20"),
        (-100, "3863"), (-1000, "3903e7"), (None, "f6"), (b"", "40"), (b"\x01\x02\x03\x04", "4401020304"),
        ("", "60"), ("IETF", "6449455446"), ("\u00fc", "62c3bc"), ([], "80"), ([1, [2, 3]], "8201820203"),
        ({}, "a0"), ({1: 2, 3: 4}, "a201020304"), ({"b": [2, 3], "a": 1}, "a26161016162820203"),
        ({-1: b"", 10: "", 100: 0}, "a30a601864002040"),  # sorted by the bytes (section 4.2.1)
    ],
)  # fmt: skip
def test_the_published_encodings(value: Any, encoded: str):
    assert cbor(value).hex() == encoded


def test_what_cant_be_encoded():
    with pytest.raises(TypeError):
        cbor(1.5)
    with pytest.raises(OverflowError):
        cbor(2**64)


def decoded(raw: bytes) -> tuple[Any, bytes]:
    """One item, and what follows it; a tag is a pair."""
    major, rest = raw[0] >> 5, raw[1:]
    number = raw[0] & 31
    if number > 23:
        width = 1 << (number - 24)
        number, rest = int.from_bytes(rest[:width]), rest[width:]
    match major:
        case 0 | 1:
            return number if major == 0 else -1 - number, rest
        case 2 | 3:
            text = rest[:number]
            return text if major == 2 else text.decode(), rest[number:]
        case 4 | 5:
            items: list[Any] = []
            for _ in range(number * (major - 3)):
                item, rest = decoded(rest)
                items.append(item)
            return items if major == 4 else dict(zip(items[::2], items[1::2], strict=True)), rest
        case 6:
            item, rest = decoded(rest)
            return (number, item), rest
        case _:
            return {22: None}[number], rest


def receipt(tree: TreeName, index: int) -> bytes:
    def read(part: TileSlice) -> bytes:
        return b"".join(LEAVES[part.first : part.first + part.count])

    signed = LogSigner(NAME, KEY).sign(tree, Frontier().appended(LEAVES))
    path = roots(inclusion_path(index, len(LEAVES)), read)
    return cose_receipt(NAME, PUBLIC, tree, len(LEAVES), index, path, signed.cose, {"beside": [b"x"]})


def verified(raw: bytes, leaf: bytes, public: bytes = PUBLIC) -> dict[int, Any]:
    """The protected header of a receipt for this leaf, as RFC 9942 section 5.2 verifies one."""
    (tag, (protected, unprotected, payload, signature)), rest = decoded(raw)
    assert (tag, payload, rest) == (18, None, b"")
    (proof,) = unprotected[396][-1]
    (size, index, path), _ = decoded(proof)
    root = root_of_inclusion(leaf, index, size, path)
    to_be_signed = cbor(["Signature1", protected, b"", root])
    Ed25519PublicKey.from_public_bytes(public).verify(signature, to_be_signed)
    return decoded(protected)[0]


@pytest.mark.parametrize("index", [0, 17, 128, 199])
def test_a_receipt_is_verified(index: int):
    header = verified(receipt(ACME, index), LEAVES[index])
    assert header == {1: -19, 4: key_id(NAME, PUBLIC), 15: {1: NAME, 2: f"{NAME}/acme/main-3"}, 395: 1}
    assert verified(receipt(HEADS_LOG, index), LEAVES[index])[15] == {1: NAME, 2: NAME}


def test_a_receipt_of_something_else_is_refused():
    with pytest.raises(InvalidSignature):
        verified(receipt(ACME, 17), LEAVES[18])
    another = receipt(ACME, 17).replace(b"main-3", b"main-4")
    with pytest.raises(InvalidSignature):
        verified(another, LEAVES[17])
    with pytest.raises(InvalidSignature):
        verified(receipt(ACME, 17), LEAVES[17], Ed25519PrivateKey.generate().public_key().public_bytes_raw())
