"""The Merkle tree of one shard: its frontier, which appends, and proofs from stored tiles.

The tree is RFC 6962's (section 2.1). What is stored is C2SP's tlog-tiles: a tile has 256 hashes, of leaves at
level 0, of full tiles of the level below above that. A frontier has the roots of the perfect subtrees from
left to right, one for each bit of the size.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

HASH_BYTES = 32
TILE_WIDTH = 256
EMPTY_ROOT = hashlib.sha256().digest()
_TILE_BITS = 8

Range = tuple[int, int]  # leaves from the first on, before the second
Nodes = dict[tuple[int, int], bytes]  # hashes by level and number


def leaf_hash(body: bytes) -> bytes:
    """The leaf of a record with this body."""
    return hashlib.sha256(b"\x00" + body).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The node above two others."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier(NamedTuple):
    """A tree of `size` leaves, as far as appending needs it."""

    size: int = 0
    peaks: bytes = b""  # the subtrees' roots, the largest first

    def appended(self, leaves: Iterable[bytes]) -> "Frontier":
        """With these leaves behind the last."""
        size, peaks = self.size, _hashes(self.peaks)
        for node in leaves:
            above = size
            while above & 1:
                node, above = node_hash(peaks.pop(), node), above >> 1
            peaks.append(node)
            size += 1
        return Frontier(size, b"".join(peaks))

    def appended_with_nodes(self, leaves: Iterable[bytes]) -> tuple["Frontier", Nodes]:
        """As `appended`, and the hash above each tile that these leaves fill, by its level and number."""
        size, peaks, nodes = self.size, _hashes(self.peaks), Nodes()
        for node in leaves:
            above, bits = size, 0
            while above & 1:
                node, above, bits = node_hash(peaks.pop(), node), above >> 1, bits + 1
                if bits % _TILE_BITS == 0:
                    nodes[bits // _TILE_BITS, above] = node
            peaks.append(node)
            size += 1
        return Frontier(size, b"".join(peaks)), nodes

    @property
    def root(self) -> bytes:
        """The tree's root."""
        peaks = _hashes(self.peaks)
        if not peaks:
            return EMPTY_ROOT
        root = peaks.pop()
        while peaks:
            root = node_hash(peaks.pop(), root)
        return root

    @property
    def is_whole(self) -> bool:
        """Whether the peaks are as many as the size needs."""
        return self.size >= 0 and len(self.peaks) == HASH_BYTES * self.size.bit_count()


def tile_root(hashes: bytes) -> bytes:
    """The root above a full tile: its hash in the level above."""
    level = _hashes(hashes)
    while len(level) > 1:
        level = [node_hash(*pair) for pair in zip(level[::2], level[1::2], strict=True)]
    return level[0]


class TileSlice(NamedTuple):
    """Hashes of one level, counted over all its tiles: what a proof needs of them."""

    level: int
    first: int
    count: int

    @property
    def tiles(self) -> range:
        """The numbers of the tiles that have them."""
        return range(self.first // TILE_WIDTH, (self.first + self.count - 1) // TILE_WIDTH + 1)


ReadSlice = Callable[[TileSlice], bytes]


def inclusion_path(index: int, size: int) -> list[Range]:
    """The subtrees whose roots prove leaf `index`, from its sibling upwards (RFC 6962 section 2.1.1)."""
    path: list[Range] = []
    first, end = 0, size
    while end - first > 1:
        middle = first + _split(end - first)
        path.append((middle, end) if index < middle else (first, middle))
        first, end = (first, middle) if index < middle else (middle, end)
    return path[::-1]


def consistency_path(older: int, newer: int) -> list[Range]:
    """The subtrees whose roots prove that the tree of `newer` leaves appends to that of `older` (RFC 6962
    section 2.1.2)."""
    path: list[Range] = []
    if older in (0, newer):
        return path
    first, end, is_whole = 0, newer, True
    while older != end:
        middle = first + _split(end - first)
        if older <= middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((first, middle))
            first, is_whole = middle, False
    if not is_whole:
        path.append((first, end))
    return path[::-1]


def slices(subtrees: Iterable[Range]) -> Iterator[TileSlice]:
    """What `roots` will read for them."""
    for first, end in subtrees:
        for start, bits in _perfect(first, end):
            yield _slice(start, bits)


def roots(subtrees: Iterable[Range], read: ReadSlice) -> list[bytes]:
    """The root of each subtree, made of hashes in tiles."""
    return [_root(first, end, read) for first, end in subtrees]


def _root(first: int, end: int, read: ReadSlice) -> bytes:
    parts = [tile_root(read(_slice(start, bits))) for start, bits in _perfect(first, end)]
    root = parts.pop()
    while parts:
        root = node_hash(parts.pop(), root)
    return root


def _slice(start: int, bits: int) -> TileSlice:
    """The hashes below the perfect subtree of 2**bits leaves from `start` on, of the highest level that has
    several, or itself."""
    level, rest = divmod(bits, _TILE_BITS)
    return TileSlice(level, start >> (level * _TILE_BITS), 1 << rest)


def _perfect(first: int, end: int) -> Iterator[tuple[int, int]]:
    """The perfect subtrees of a range that begins one: where each begins, and the bits of its size."""
    while first < end:
        bits = (end - first).bit_length() - 1
        yield first, bits
        first += 1 << bits


def _split(size: int) -> int:
    """The largest power of two that is less than `size`."""
    return 1 << ((size - 1).bit_length() - 1)


def _hashes(joined: bytes) -> list[bytes]:
    return [joined[start : start + HASH_BYTES] for start in range(0, len(joined), HASH_BYTES)]


def joined(hashes: Sequence[bytes]) -> bytes:
    """As a tile or a frontier has them."""
    return b"".join(hashes)
