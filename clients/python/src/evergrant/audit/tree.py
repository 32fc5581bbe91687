"""Proofs of a Merkle tree, checked without the log (RFC 9162 sections 2.1.3.2 and 2.1.4.2).

The hashes are those of RFC 6962 section 2.1: SHA-256, of a leaf behind 0x00, of a node behind 0x01.
"""

import hashlib
from collections.abc import Sequence

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256().digest()


class ProofError(ValueError):
    """The proof doesn't show what it is offered for. The text says why."""


def leaf_hash(body: bytes) -> bytes:
    """The leaf of a record with this body."""
    return hashlib.sha256(b"\x00" + body).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The node above two others."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The root of the tree of `size` leaves to which `path` leads from leaf number `index`, counted from 0.

    Raises ProofError when a path of this length can't be of that leaf.
    """
    if not 0 <= index < size:
        raise ProofError(f"a tree of {size} records has none with the index {index}")
    place, last, root = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            raise ProofError("the proof is longer than the way to the root")
        if place & 1 or place == last:
            root = node_hash(sibling, root)
            place, last = _until_right(place, last)
        else:
            root = node_hash(root, sibling)
        place, last = place >> 1, last >> 1
    if last != 0:
        raise ProofError("the proof is shorter than the way to the root")
    return root


def require_consistent(
    older_size: int, older_root: bytes, newer_size: int, newer_root: bytes, path: Sequence[bytes]
) -> None:
    """Raise ProofError unless the newer tree only appends to the older one."""
    if older_size > newer_size:
        raise ProofError(f"the newer tree has {newer_size} records, the older one {older_size}")
    if older_size in (0, newer_size):
        if path:
            raise ProofError("nothing has to be proven, and there is a proof")
        if older_root != (newer_root if older_size else EMPTY_ROOT):
            raise ProofError("two trees of one size have different roots")
        return
    hashes = [older_root, *path] if older_size & (older_size - 1) == 0 else list(path)
    if not hashes:
        raise ProofError("the proof is empty")
    place, last = older_size - 1, newer_size - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    older = newer = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            raise ProofError("the proof is longer than the way to the root")
        if place & 1 or place == last:
            older, newer = node_hash(sibling, older), node_hash(sibling, newer)
            place, last = _until_right(place, last)
        else:
            newer = node_hash(newer, sibling)
        place, last = place >> 1, last >> 1
    if last != 0:
        raise ProofError("the proof is shorter than the way to the root")
    if older != older_root:
        raise ProofError("the older tree isn't the beginning of the newer one")
    if newer != newer_root:
        raise ProofError("the proof leads to another root than the newer tree's")


def _until_right(place: int, last: int) -> tuple[int, int]:
    """Up to the next node that has one to its left."""
    while place and not place & 1:
        place, last = place >> 1, last >> 1
    return place, last
