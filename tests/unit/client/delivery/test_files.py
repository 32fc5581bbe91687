"""A token's file: replaced as a whole, for one user, and never over somebody else's."""

import os
import stat
from pathlib import Path

import pytest
from evergrant.delivery.delivery import Format
from evergrant.delivery.files import TokenFile
from evergrant.errors import BadRequest

from tests.unit.client.scripted_evergrant import TOKEN, leased


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "token"


def test_the_file_is_for_its_user_alone_and_replaced_as_a_whole(path: Path):
    with TokenFile(path) as file:
        assert file.write(leased(None), Format.TOKEN)
        before = path.stat()
        assert stat.S_IMODE(before.st_mode) == 0o600
        assert path.read_text() == TOKEN
        assert not file.write(leased(None), Format.TOKEN)
        assert path.stat().st_ino == before.st_ino
        with path.open() as reader:
            assert file.write(leased(None), Format.ENV)
            assert reader.read() == TOKEN  # of who had it open
        assert path.read_text() == f"ACCESS_TOKEN={TOKEN}\n"
    assert sorted(each.name for each in path.parent.iterdir()) == [".token.evergrant", "token"]


def test_what_a_link_points_to_isnt_written(path: Path, tmp_path: Path):
    with TokenFile(path) as file:
        (tmp_path / "elsewhere").write_text("as it was")
        path.symlink_to(tmp_path / "elsewhere")
        file.write(leased(None), Format.TOKEN)
    assert (tmp_path / "elsewhere").read_text() == "as it was"
    assert not path.is_symlink()


def test_a_write_that_fails_leaves_the_token_of_before(path: Path, monkeypatch: pytest.MonkeyPatch):
    with TokenFile(path) as file:
        file.write(leased(None), Format.TOKEN)

        def refuse(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="No space"):
            file.write(leased(None), Format.ENV)
    assert path.read_text() == TOKEN
    assert sorted(each.name for each in path.parent.iterdir()) == [".token.evergrant", "token"]


def test_a_file_of_somebody_else_is_left_alone(path: Path):
    path.write_text("theirs")
    with pytest.raises(BadRequest, match="wasn't written by this command"), TokenFile(path):
        pass
    assert path.read_text() == "theirs"
    assert [each.name for each in path.parent.iterdir()] == ["token"]


def test_two_dont_keep_one_file_and_the_next_takes_it_over(path: Path):
    with TokenFile(path) as file:
        file.write(leased(None), Format.TOKEN)
        with pytest.raises(BadRequest, match="another process keeps"), TokenFile(path):
            pass
    with TokenFile(path) as file:
        assert file.remove()
        assert not file.remove()
    assert not path.exists()


def test_a_mode_for_everybody_and_an_unknown_owner_are_refused(path: Path):
    with pytest.raises(BadRequest, match="open to every user"):
        TokenFile(path, mode=0o644)
    with pytest.raises(BadRequest, match="no user or group nobody-at-all"):
        TokenFile(path, owner="nobody-at-all")
    with TokenFile(path, mode=0o640, owner=f"{os.getuid()}:{os.getgid()}") as file:
        file.write(leased(None), Format.TOKEN)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
