"""The short form of `python -m tests.e2e.mistakes`: what takes no process of its own."""

import pytest

from tests.e2e import mistakes


def test_the_list_is_whole():
    assert len({mistake.name for mistake in mistakes.MISTAKES}) == 26
    assert all(mistake.repair for mistake in mistakes.MISTAKES)


async def test_the_repair_is_on_the_first_screen(capsys: pytest.CaptureFixture[str]):
    async with mistakes.placed() as place:
        silent = await mistakes.made(place, [mistake for mistake in mistakes.MISTAKES if mistake.quick])
    assert [mistake.name for mistake in silent] == [], capsys.readouterr().out
