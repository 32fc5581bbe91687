"""A room from its reservation to its end, and what its file says at each step."""

import asyncio
import errno
import fcntl
import json
import os
import re
import resource
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from evergrant_server.core.attempt import Attempt, AttemptKind
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.ids import AttemptId, ConnectionId, Tenant
from evergrant_server.crypto import Place, SealingKey, new_sealing_key, open_sealed
from evergrant_server.journal.entry import ROOM_BYTES, Entry, Header, Room, age_s, fence, unsent

NOW = datetime(2030, 1, 1, tzinfo=UTC)
ATTEMPT = Attempt(
    tenant=Tenant("acme"), id=AttemptId("att_1"), connection_id=ConnectionId("con_1"),
    kind=AttemptKind.REFRESH, from_generation=3, journal_id="jrn_1", opened_at=NOW,
    send_by=NOW + timedelta(seconds=15),
)  # fmt: skip
SECRET = b"rt-that-works-once"


@pytest.fixture
def live() -> set[AttemptId]:
    return set()


@pytest.fixture
def room(tmp_path: Path, live: set[AttemptId]) -> Room:
    return Room(tmp_path, ATTEMPT, live)


@pytest.fixture
def path(room: Room, tmp_path: Path) -> Path:
    return tmp_path / "att_1.room"


@pytest.fixture
def key() -> SealingKey:
    return new_sealing_key("cky")


def test_a_room_is_large_enough_for_its_owner_alone_and_in_use(room: Room, path: Path, live: set[AttemptId]):
    assert path.stat().st_size == ROOM_BYTES >= 256 * 1024
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert live == {ATTEMPT.id}
    room.release()
    assert not path.exists()
    assert live == set()


def test_the_same_attempt_has_no_two_rooms(room: Room, path: Path, tmp_path: Path):
    room.enter()
    before = path.read_bytes()
    live: set[AttemptId] = set()
    with pytest.raises(
        Failure, match=f"The journal {tmp_path} has no room for an answer: File exists"
    ) as caught:
        Room(tmp_path, ATTEMPT, live)
    assert caught.value.code is Code.JOURNAL_UNAVAILABLE
    assert path.read_bytes() == before
    assert live == set(), "nobody waits for a room that isn't there"


def test_a_room_that_can_t_be_filled_is_given_back(tmp_path: Path, live: set[AttemptId]):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(Failure):
            Room(tmp_path, ATTEMPT, live)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    assert live == set()


def test_it_says_whether_a_byte_may_have_left(room: Room, path: Path):
    assert unsent(path) == room.header
    assert room.header.model_copy(update={"began": None}) == Header.of(ATTEMPT).model_copy(
        update={"began": None}
    )
    assert room.enter()
    assert unsent(path) is None
    room.leave()
    assert unsent(path) is None, "it was sent all the same"


def test_who_can_t_be_read_may_have_sent(room: Room, path: Path, tmp_path: Path):
    assert unsent(tmp_path / "att_2.room") is None
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"tenant"', b'"nobody"'))
    assert unsent(path) is None
    path.write_bytes(b"")
    assert unsent(path) is None
    path.write_bytes(whole)
    assert unsent(path) is not None


def test_no_two_are_between_the_check_and_the_last_byte(room: Room, path: Path):
    other = os.open(path, os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_EX)
    assert not room.enter(), "it is being fenced off this instant"
    assert unsent(path) is not None
    fcntl.flock(other, fcntl.LOCK_UN)
    assert room.enter()
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert fence(path) is False
    assert path.exists(), "who sends keeps its room"
    room.leave()
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
    assert fence(path)
    assert not path.exists()
    assert fence(path), "nothing is left to fence off"


def test_who_was_fenced_off_lets_go_of_the_lock(room: Room, path: Path):
    other = os.open(path, os.O_RDWR)
    assert fence(path)
    assert not room.enter()
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)


def test_a_room_that_was_given_back_sends_and_keeps_nothing(
    room: Room, path: Path, key: SealingKey, tmp_path: Path
):
    room.release()
    assert room.enter() is False
    room.leave()
    room.release()
    with pytest.raises(OSError, match="given back") as caught:
        room.keep(key, SECRET)
    assert caught.value.errno == errno.EBADF
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (Failure(Code.REFRESH_PENDING), False),
        (Failure(Code.STORE_UNAVAILABLE), True),
        (asyncio.CancelledError(), True),
    ],
    ids=str,
)
def test_a_room_whose_intent_may_stand_stays_and_says_that_it_was_no_use(
    room: Room, path: Path, live: set[AttemptId], error: BaseException, stays: bool
):
    room.unused(error)
    assert (path.exists(), unsent(path) is not None, room.enter(), live) == (stays, stays, False, set())


def test_an_answer_is_whole_when_the_disk_takes_little_at_a_time(
    room: Room, key: SealingKey, monkeypatch: pytest.MonkeyPatch
):
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:100], at))
    entry = Entry.read(room.keep(key, SECRET * 50).path)
    assert open_sealed(key, entry.header.place, entry.sealed) == SECRET * 50


def test_the_age_of_a_room_is_known_where_it_says_when_it_was_made(room: Room, path: Path):
    age = age_s(path)
    assert age is not None
    assert age >= 0
    path.write_bytes(re.sub(rb'"began":[0-9.]+', b'"began":null', path.read_bytes()))
    assert age_s(path) is None
    path.write_bytes(b"torn")
    assert age_s(path) is None


def test_a_kept_answer_is_the_whole_file_and_its_room_is_over(
    room: Room, path: Path, key: SealingKey, live: set[AttemptId]
):
    reserved = path.stat().st_ino
    entry = room.keep(key, SECRET)
    assert entry.path == path.with_suffix(".entry")
    assert entry.path.stat().st_ino == reserved, "it took the room that was reserved for it"
    assert not path.exists()
    assert live == set()
    assert room.enter() is False
    first, _, sealed = entry.path.read_bytes().partition(b"\n")
    assert Header.model_validate_json(first) == room.header == entry.header
    assert open_sealed(key, entry.header.place, entry.sealed) == SECRET
    assert sealed == entry.sealed, "nothing of the room is left behind it"
    room.release()
    assert Entry.read(entry.path).sealed == entry.sealed, "a release after it takes nothing away"
    entry.drop()
    entry.drop()
    assert not entry.path.exists()


def test_a_late_answer_has_a_file_of_its_owner_alone(room: Room, path: Path, key: SealingKey):
    assert fence(path)
    entry = room.keep(key, SECRET)
    assert stat.S_IMODE(entry.path.stat().st_mode) == 0o600
    assert open_sealed(key, entry.header.place, Entry.read(entry.path).sealed) == SECRET


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_no_descriptor_is_left_open(tmp_path: Path, live: set[AttemptId], key: SealingKey):
    before = descriptors()
    room = Room(tmp_path, ATTEMPT, live)
    fence(tmp_path / "att_1.room")
    room.keep(key, SECRET)
    Room(tmp_path, ATTEMPT, live).release()
    assert descriptors() == before


def test_the_seal_is_bound_to_all_of_its_header():
    assert Header.of(ATTEMPT).place == Place("acme", "journal", "att_1", "answer:con_1:refresh:1", 3)


def test_what_is_torn_says_what_is_wrong_with_it(room: Room, key: SealingKey):
    path = room.keep(key, SECRET).path
    first, _, sealed = path.read_bytes().partition(b"\n")
    newer = json.dumps(json.loads(first) | {"format": 2}).encode()
    for torn in (first + b"\n", first, newer + b"\n" + sealed):
        path.write_bytes(torn)
        with pytest.raises(Failure, match=r"att_1.entry is cut short, or another's") as caught:
            Entry.read(path)
        assert caught.value.code is Code.SEAL_BROKEN
    path.write_bytes(b"{}\n" + sealed)
    with pytest.raises(Failure, match="has no header") as caught:
        Entry.read(path)
    assert caught.value.code is Code.SEAL_BROKEN
    another = path.with_name("att_2.entry")
    another.write_bytes(first + b"\n" + sealed)
    with pytest.raises(Failure, match="another's"):
        Entry.read(another)
