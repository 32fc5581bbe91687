"""The ten tampered copies of `bench.audit.tampered`, of a short log: each is named, on both databases."""

import pytest

from bench.audit import tampered

RECORDS = 1_200
HALF, CUT = RECORDS // 2, RECORDS * 3 // 4
NAMED = {
    "edited": f"bench-1/{HALF}: edited",
    "swapped": f"bench-1/{HALF}: replaced",
    "deleted": f"bench-1/{HALF}: missing",
    "cut, with its end": f"bench-1/{CUT}: cut",
    "renumbered, with its end": f"bench-1/{HALF}: replaced",
    "a shard gone with its head": "bench-2/0: gone",
    "rewritten, all hashes valid": "another root",
    "two stories for two readers": "422",
    "an old database put back": "fewer heads",
    "a forged checkpoint": "is wrong",
}


@pytest.mark.parametrize(
    "on_postgresql", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["sqlite", "postgresql"]
)
async def test_each_copy_is_named(on_postgresql: bool, capsys: pytest.CaptureFixture[str]):
    rows = await tampered.run(RECORDS, on_postgresql=on_postgresql)
    assert [row.copy for row in rows] == list(NAMED)
    for row in rows:
        assert NAMED[row.copy] in row.place, row
    assert capsys.readouterr().out.count("\n| ") == len(NAMED) + 2  # and the head of the table
