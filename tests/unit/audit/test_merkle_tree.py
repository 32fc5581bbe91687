"""The tree against RFC 6962's recursive definition, its published roots, and the client's verification."""

from collections.abc import Sequence

import pytest
from evergrant.audit import tree as verifier
from hypothesis import given
from hypothesis import strategies as st

from evergrant_server.audit import merkle_tree
from evergrant_server.audit.merkle_tree import Frontier, TileSlice

# the inputs and roots that implementations of Certificate Transparency test themselves with
BODIES = [
    bytes.fromhex(text)
    for text in (
        *("", "00", "10", "2021", "3031", "40414243", "5051525354555657"),
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
MOST = 700  # leaves: more than two tiles
LEAVES = [merkle_tree.leaf_hash(number.to_bytes(4)) for number in range(MOST)]


def definition(leaves: Sequence[bytes]) -> bytes:
    """MTH of RFC 6962 section 2.1, word by word."""
    if not leaves:
        return merkle_tree.EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    middle = 1
    while middle * 2 < len(leaves):
        middle *= 2
    return merkle_tree.node_hash(definition(leaves[:middle]), definition(leaves[middle:]))


def read_all(level: int) -> list[bytes]:
    """The hashes of a level: of all full tiles below it."""
    hashes = LEAVES
    for _ in range(level):
        full = len(hashes) // merkle_tree.TILE_WIDTH
        hashes = [merkle_tree.tile_root(b"".join(hashes[n * 256 : (n + 1) * 256])) for n in range(full)]
    return hashes


LEVELS = [read_all(level) for level in range(2)]


def read(part: TileSlice) -> bytes:
    hashes = LEVELS[part.level][part.first : part.first + part.count]
    assert len(hashes) == part.count, "a hash that no full tile has yet"
    return b"".join(hashes)


@pytest.mark.parametrize("size", range(len(ROOTS)))
def test_the_published_roots(size: int):
    frontier = Frontier().appended(merkle_tree.leaf_hash(body) for body in BODIES[: size + 1])
    assert frontier.root.hex() == ROOTS[size]


def test_an_empty_tree():
    assert Frontier().root == verifier.EMPTY_ROOT == definition([])


@given(st.lists(st.integers(0, 40), max_size=12))
def test_leaves_may_be_appended_in_any_batches(batches: list[int]):
    frontier, size = Frontier(), 0
    for count in batches:
        frontier = frontier.appended(LEAVES[size : size + count])
        size += count
    assert frontier.size == size
    assert frontier.is_whole
    assert frontier.root == definition(LEAVES[:size])


@given(st.integers(1, MOST), st.data())
def test_each_leaf_is_proven_to_the_client(size: int, data: st.DataObject):
    index = data.draw(st.integers(0, size - 1))
    subtrees = merkle_tree.inclusion_path(index, size)
    path = merkle_tree.roots(subtrees, read)
    assert verifier.root_of_inclusion(LEAVES[index], index, size, path) == definition(LEAVES[:size])
    assert {part for part in merkle_tree.slices(subtrees)} == {
        part for part in merkle_tree.slices(reversed(subtrees))
    }


@given(st.integers(0, MOST), st.integers(0, MOST))
def test_each_tree_is_proven_to_append_to_an_older_one(one: int, another: int):
    older, newer = sorted((one, another))
    path = merkle_tree.roots(merkle_tree.consistency_path(older, newer), read)
    verifier.require_consistent(older, definition(LEAVES[:older]), newer, definition(LEAVES[:newer]), path)


@given(st.integers(2, MOST), st.data())
def test_a_proof_of_another_leaf_size_or_hash_leads_elsewhere(size: int, data: st.DataObject):
    index = data.draw(st.integers(0, size - 1))
    path, root = merkle_tree.roots(merkle_tree.inclusion_path(index, size), read), definition(LEAVES[:size])
    wrong = data.draw(st.integers(0, size - 1).filter(lambda number: number != index))
    altered = data.draw(st.integers(0, len(path) - 1))
    for leaf, place, hashes in (
        (LEAVES[wrong], index, path),
        (LEAVES[index], wrong, path),
        (LEAVES[index], index, path[:-1]),
        (LEAVES[index], index, [*path, root]),
        (LEAVES[index], index, [*path[:altered], bytes(32), *path[altered + 1 :]]),
    ):
        try:
            assert verifier.root_of_inclusion(leaf, place, size, hashes) != root
        except verifier.ProofError:
            continue


@given(st.integers(2, MOST), st.data())
def test_a_tree_that_was_rewritten_is_consistent_with_no_older_one(newer: int, data: st.DataObject):
    older = data.draw(st.integers(1, newer - 1))
    rewritten = data.draw(st.integers(0, older - 1))
    leaves = [*LEAVES[:rewritten], bytes(32), *LEAVES[rewritten + 1 : newer]]
    path = merkle_tree.roots(merkle_tree.consistency_path(older, newer), read)
    with pytest.raises(verifier.ProofError):
        verifier.require_consistent(older, definition(LEAVES[:older]), newer, definition(leaves), path)
    with pytest.raises(verifier.ProofError):
        verifier.require_consistent(
            older, definition(leaves[:older]), newer, definition(LEAVES[:newer]), path
        )


@pytest.mark.parametrize(
    ("sizes", "roots", "path", "why"),
    [
        ((3, 2), (0, 0), [], "the newer tree has 2"),
        ((2, 2), (2, 3), [], "two trees of one size"),
        ((0, 2), (2, 2), [], "two trees of one size"),
        ((2, 2), (2, 2), [bytes(32)], "nothing has to be proven"),
        ((3, 7), (3, 7), [], "the proof is empty"),
        ((4, 8), (4, 8), [], "shorter"),
    ],
)
def test_what_a_wrong_consistency_proof_is_told(
    sizes: tuple[int, int], roots: tuple[int, int], path: list[bytes], why: str
):
    older, newer = (definition(LEAVES[:size]) for size in roots)
    with pytest.raises(verifier.ProofError, match=why):
        verifier.require_consistent(sizes[0], older, sizes[1], newer, path)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (5, 5), (-1, 3)])
def test_an_index_beyond_the_tree(index: int, size: int):
    with pytest.raises(verifier.ProofError, match="has none with the index"):
        verifier.root_of_inclusion(LEAVES[0], index, size, [])


def test_a_frontier_of_another_size_is_noticed():
    frontier = Frontier().appended(LEAVES[:5])
    assert not Frontier(4, frontier.peaks).is_whole
    assert not Frontier(-1, b"").is_whole
