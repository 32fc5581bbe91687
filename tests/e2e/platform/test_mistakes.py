"""`python -m tests.e2e.mistakes`, in two runs: what takes few processes, and the rest."""

import pytest

from tests.e2e.mistakes import (
    first_week,  # noqa: F401  # which registers them
    place,
)


def test_the_list_is_whole():
    assert len({mistake.name for mistake in place.MISTAKES}) == 26
    assert all(mistake.repair for mistake in place.MISTAKES)


@pytest.mark.soak
@pytest.mark.parametrize("quick", [True, False])
async def test_the_repair_is_on_the_first_screen(capsys: pytest.CaptureFixture[str], quick: bool):
    """Each mistake is made in one of the two."""
    async with place.placed() as here:
        silent = await place.made(here, [mistake for mistake in place.MISTAKES if mistake.quick is quick])
    assert [mistake.name for mistake in silent] == [], capsys.readouterr().out
