"""A room from its reservation to its end, and what its file says at each step."""

import asyncio
import errno
import fcntl
import json
import os
import re
import resource
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AttemptId
from evergrant_server.crypto import AssociatedData, SealingKey, new_sealing_key, open_sealed
from evergrant_server.journal.entry import EntryHeader, JournalEntry
from evergrant_server.journal.reservation import (
    RESERVED_BYTES,
    JournalReservation,
    read_unsent_header,
    remove_reservation,
    rename_complete,
    reservation_age_s,
)
from tests.fakes.failures import fails
from tests.unit.journal.test_journal import an_attempt

NOW = datetime(2030, 1, 1, tzinfo=UTC)
ATTEMPT = an_attempt("jrn_1")
SECRET = b"rt-that-works-once"


@pytest.fixture
def live() -> set[AttemptId]:
    return set()


@pytest.fixture
def room(tmp_path: Path, live: set[AttemptId]) -> JournalReservation:
    return JournalReservation(tmp_path, ATTEMPT, live)


@pytest.fixture
def path(room: JournalReservation, tmp_path: Path) -> Path:
    return tmp_path / "att_1.room"


@pytest.fixture
def key() -> SealingKey:
    return new_sealing_key("cky")


def test_a_reservation_is_large_private_and_live(room: JournalReservation, path: Path, live: set[AttemptId]):
    assert path.stat().st_size == RESERVED_BYTES >= 256 * 1024
    assert path.stat().st_blocks * 512 >= RESERVED_BYTES
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert live == {ATTEMPT.id}
    room.release()
    assert not path.exists()
    assert live == set()


def test_an_attempt_has_one_reservation(room: JournalReservation, path: Path, tmp_path: Path):
    room.begin_send()
    before = path.read_bytes()
    live: set[AttemptId] = set()
    with fails(
        ErrorCode.JOURNAL_UNAVAILABLE, f"The journal {tmp_path} has no space for a reply: File exists"
    ):
        JournalReservation(tmp_path, ATTEMPT, live)
    assert path.read_bytes() == before
    assert live == set(), "nobody waits for a room that isn't there"


def test_a_full_disk_refuses_the_reservation_and_leaves_no_file(tmp_path: Path, live: set[AttemptId]):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(Failure):
            JournalReservation(tmp_path, ATTEMPT, live)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    assert live == set()


def test_the_mark_says_whether_a_byte_may_have_left(room: JournalReservation, path: Path):
    assert read_unsent_header(path) == room.header
    assert room.header.model_copy(update={"began_at": None}) == EntryHeader.of(ATTEMPT).model_copy(
        update={"began_at": None}
    )
    assert room.begin_send()
    assert read_unsent_header(path) is None
    room.end_send()
    assert read_unsent_header(path) is None, "it was sent all the same"


def test_an_unreadable_reservation_counts_as_sent(room: JournalReservation, path: Path, tmp_path: Path):
    assert read_unsent_header(tmp_path / "att_2.room") is None
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"tenant"', b'"nobody"'))
    assert read_unsent_header(path) is None
    path.write_bytes(b"")
    assert read_unsent_header(path) is None
    path.write_bytes(whole)
    assert read_unsent_header(path) is not None


def test_a_reservation_is_locked_from_check_to_last_byte(room: JournalReservation, path: Path):
    other = os.open(path, os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_EX)
    assert not room.begin_send(), "it is being fenced off this instant"
    assert read_unsent_header(path) is not None
    fcntl.flock(other, fcntl.LOCK_UN)
    assert room.begin_send()
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert remove_reservation(path) is False
    assert path.exists(), "who sends keeps its room"
    room.end_send()
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
    assert remove_reservation(path)
    assert not path.exists()
    assert remove_reservation(path), "nothing is left to fence off"


def test_a_fenced_reservation_releases_its_lock(room: JournalReservation, path: Path):
    other = os.open(path, os.O_RDWR)
    assert remove_reservation(path)
    assert not room.begin_send()
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)


def test_a_released_reservation_sends_and_writes_nothing(
    room: JournalReservation, path: Path, key: SealingKey, tmp_path: Path
):
    room.release()
    assert room.begin_send() is False
    room.end_send()
    room.release()
    with pytest.raises(OSError, match="released") as caught:
        room.write_entry(key, SECRET)
    assert caught.value.errno == errno.EBADF
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (Failure(ErrorCode.REFRESH_PENDING), False),
        (Failure(ErrorCode.STORE_UNAVAILABLE), True),
        (asyncio.CancelledError(), True),
    ],
    ids=str,
)
def test_a_reservation_whose_intent_may_be_committed_stays_as_unsent(
    room: JournalReservation, path: Path, live: set[AttemptId], error: BaseException, stays: bool
):
    room.abandon(error)
    assert (path.exists(), read_unsent_header(path) is not None, room.begin_send(), live) == (
        stays,
        stays,
        False,
        set(),
    )


def test_short_writes_make_a_complete_entry(
    room: JournalReservation, key: SealingKey, monkeypatch: pytest.MonkeyPatch
):
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:100], at))
    entry = JournalEntry.read(room.write_entry(key, SECRET * 50).path)
    assert open_sealed(key, entry.header.associated_data, entry.sealed) == SECRET * 50


def test_the_age_of_a_reservation(room: JournalReservation, path: Path):
    age = reservation_age_s(path)
    assert age is not None
    assert age >= 0
    path.write_bytes(re.sub(rb'"began_at":[0-9.]+', b'"began_at":null', path.read_bytes()))
    assert reservation_age_s(path) is None
    path.write_bytes(b"torn")
    assert reservation_age_s(path) is None


def test_an_entry_replaces_its_reservation(
    room: JournalReservation, path: Path, key: SealingKey, live: set[AttemptId]
):
    reserved = path.stat().st_ino
    entry = room.write_entry(key, SECRET)
    assert entry.path == path.with_suffix(".entry")
    assert entry.path.stat().st_ino == reserved, "it took the room that was reserved for it"
    assert not path.exists()
    assert live == set()
    assert room.begin_send() is False
    first, _, sealed = entry.path.read_bytes().partition(b"\n")
    assert EntryHeader.model_validate_json(first) == room.header.with_digest_of(sealed) == entry.header
    assert open_sealed(key, entry.header.associated_data, entry.sealed) == SECRET
    assert sealed == entry.sealed, "nothing of the room is left behind it"
    room.release()
    assert JournalEntry.read(entry.path).sealed == entry.sealed, "a release after it takes nothing away"
    entry.drop()
    entry.drop()
    assert not entry.path.exists()


def test_a_reply_after_fencing_is_written_to_a_private_file(
    room: JournalReservation, path: Path, key: SealingKey
):
    assert remove_reservation(path)
    entry = room.write_entry(key, SECRET)
    assert stat.S_IMODE(entry.path.stat().st_mode) == 0o600
    assert open_sealed(key, entry.header.associated_data, JournalEntry.read(entry.path).sealed) == SECRET


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_no_file_descriptor_is_left_open(tmp_path: Path, live: set[AttemptId], key: SealingKey):
    before = descriptors()
    room = JournalReservation(tmp_path, ATTEMPT, live)
    remove_reservation(tmp_path / "att_1.room")
    room.write_entry(key, SECRET)
    JournalReservation(tmp_path, ATTEMPT, live).release()
    assert descriptors() == before


def test_the_seal_is_bound_to_the_whole_header():
    assert EntryHeader.of(ATTEMPT).associated_data == AssociatedData(
        "acme", "journal", "att_1", "answer:con_1:refresh:1", 3
    )


def test_an_incomplete_entry_is_seal_broken(room: JournalReservation, key: SealingKey):
    path = room.write_entry(key, SECRET).path
    first, _, sealed = path.read_bytes().partition(b"\n")
    newer = json.dumps(json.loads(first) | {"format": 2}).encode()
    for torn in (first + b"\n", first, newer + b"\n" + sealed):
        path.write_bytes(torn)
        with fails(ErrorCode.SEAL_BROKEN, "att_1.entry is incomplete, or of another attempt"):
            JournalEntry.read(path)
    path.write_bytes(b"{}\n" + sealed)
    with fails(ErrorCode.SEAL_BROKEN, "has no header"):
        JournalEntry.read(path)
    another = path.with_name("att_2.entry")
    another.write_bytes(first + b"\n" + sealed)
    with pytest.raises(Failure, match="of another attempt"):
        JournalEntry.read(another)


def dies_at(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """The process ends before this system call."""

    def ends(*_: object) -> None:
        raise SystemExit(137)

    monkeypatch.setattr(os, call, ends)


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_reply_that_was_written_and_not_renamed_is_complete(
    room: JournalReservation, path: Path, key: SealingKey, monkeypatch: pytest.MonkeyPatch, call: str
):
    with monkeypatch.context() as patched:
        dies_at(patched, call)
        with pytest.raises(SystemExit):
            room.write_entry(key, SECRET)
    assert JournalEntry.is_complete(path)
    entry = rename_complete(path)
    assert entry == path.with_suffix(".entry")
    read = JournalEntry.read(entry)
    assert open_sealed(key, read.header.associated_data, read.sealed) == SECRET
    assert not path.exists()


@pytest.mark.parametrize("call", ["ftruncate", "pwrite"])
def test_a_reservation_without_a_reply_is_not_complete(
    room: JournalReservation, path: Path, key: SealingKey, monkeypatch: pytest.MonkeyPatch, call: str
):
    with monkeypatch.context() as patched:
        dies_at(patched, call)
        with pytest.raises(SystemExit):
            room.write_entry(key, SECRET)
    assert rename_complete(path) is None
    assert path.exists()


def _last_bit_turned(content: bytes) -> bytes:
    return content[:-1] + bytes((content[-1] ^ 1,))


@pytest.mark.parametrize("change", [lambda it: it[:-1], lambda it: it + b"\0", _last_bit_turned])
def test_a_torn_reply_is_not_complete(
    room: JournalReservation, path: Path, key: SealingKey, change: Callable[[bytes], bytes]
):
    entry = room.write_entry(key, SECRET).path
    path.write_bytes(change(entry.read_bytes()))
    assert not JournalEntry.is_complete(path)
    assert rename_complete(path) is None


def test_a_close_that_fails_loses_no_late_reply(
    room: JournalReservation, path: Path, key: SealingKey, monkeypatch: pytest.MonkeyPatch
):
    """It was fenced off after it was sent. On Linux close() closes also when it fails: it isn't repeated."""
    assert room.begin_send()
    room.end_send()
    path.unlink()
    close, failed = os.close, list[int]()

    def close_and_fail_once(fd: int) -> None:
        close(fd)
        if not failed:
            failed.append(fd)
            raise OSError(errno.EIO, "the answer was lost")

    monkeypatch.setattr(os, "close", close_and_fail_once)
    entry = room.write_entry(key, SECRET)
    room.release()
    assert failed
    assert entry.path.exists()
