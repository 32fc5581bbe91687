"""The short form of `python -m tests.e2e.mistakes`: what takes few processes; in `make soak` all of it."""

import pytest

from tests.e2e.mistakes import (
    first_week,  # noqa: F401  # which registers them
    place,
)


def test_the_list_is_whole():
    assert len({mistake.name for mistake in place.MISTAKES}) == 26
    assert all(mistake.repair for mistake in place.MISTAKES)


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.soak)])
async def test_the_repair_is_on_the_first_screen(capsys: pytest.CaptureFixture[str], quick: bool):
    """Each mistake is made in one of the two."""
    async with place.placed() as here:
        silent = await place.made(here, [mistake for mistake in place.MISTAKES if mistake.quick is quick])
    assert [mistake.name for mistake in silent] == [], capsys.readouterr().out
