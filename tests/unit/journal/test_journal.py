"""Entries on disk: room first, whole or not there, bound to their attempt, never deleted unread."""

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from activities.single_use.journaled_reply import JournaledReply
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AttemptId, ConnectionId, Tenant
from evergrant_server.core.single_use.attempt import Attempt, AttemptKind
from evergrant_server.crypto import SealingKey, new_sealing_key, open_sealed
from evergrant_server.journal import AttemptStatus, Journal, JournalEntry
from providers.responses.raw_reply import RawReply

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SECRET = b"rt-a-refresh-token-that-works-once"


def an_attempt(journal: Journal, name: str = "att_1") -> Attempt:
    return Attempt(
        tenant=Tenant("acme"),
        id=AttemptId(name),
        connection_id=ConnectionId("con_1"),
        kind=AttemptKind.REFRESH,
        from_generation=3,
        journal_id=journal.id,
        opened_at=NOW,
        send_by=NOW + timedelta(seconds=15),
    )


@pytest.fixture
def key() -> SealingKey:
    return new_sealing_key("cky")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journals")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel refuses to make any file larger, as it refuses on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def kept(journal: Journal, key: SealingKey, name: str = "att_1") -> JournalEntry:
    return journal.reserve(an_attempt(journal, name)).write_entry(key, SECRET)


def opened(path: Path, key: SealingKey) -> bytes:
    entry = JournalEntry.read(path)
    return open_sealed(key, entry.header.associated_data, entry.sealed)


def test_an_answer_is_sealed_for_its_attempt_and_found_again(journal: Journal, key: SealingKey):
    kept(journal, key)
    found = journal.entry(an_attempt(journal))
    assert found is not None
    assert open_sealed(key, found.header.associated_data, found.sealed) == SECRET
    assert SECRET not in found.path.read_bytes()
    found.drop()
    assert journal.entry(an_attempt(journal)) is None


def test_what_a_living_neighbour_leaves_lying_is_taken_up_by_one_worker(journal: Journal, key: SealingKey):
    entry = kept(journal, key)
    first, second = (Journal(journal.folder) for _ in range(2))
    with first.overdue_paths(60) as taken:
        assert taken == [], "its owner is about to commit it"
    with journal.overdue_paths(0) as taken:
        assert taken == [], "its own"
    with first.overdue_paths(0) as taken, second.overdue_paths(0) as others:
        assert (taken, others) == ([entry.path], [])
    with second.overdue_paths(0) as taken:
        assert taken == [entry.path]
    journal.release()
    with first.overdue_paths(0) as taken:
        assert taken == [], "a dead owner's is taken up with its whole directory"


@pytest.mark.parametrize("name", ["", ".", "..", "another/jrn_1", "jrn_of-another-host"])
def test_whether_an_owner_that_is_not_on_this_host_lives_is_not_known(journal: Journal, name: str):
    attempt = an_attempt(journal).model_copy(update={"journal_id": name})
    assert journal.status_of(attempt) == AttemptStatus(None, None, False)
    assert [it.name for it in journal.folder.parent.rglob("lock")] == ["lock"], "its own, and no stray one"


def test_a_full_disk_is_found_before_anything_is_sent(journal: Journal):
    with largest_file(4096), pytest.raises(Failure) as caught:
        journal.reserve(an_attempt(journal))
    assert caught.value.code is ErrorCode.JOURNAL_UNAVAILABLE
    assert [it.name for it in journal.folder.glob("*/*")] == ["lock"], "nothing is left behind"
    journal.reserve(an_attempt(journal)).release()


def test_room_that_was_reserved_takes_an_answer_when_the_disk_is_full_meanwhile(
    journal: Journal, key: SealingKey
):
    room = journal.reserve(an_attempt(journal))
    assert os.stat(journal.folder / journal.id / "att_1.room").st_blocks * 512 >= 256 * 1024
    room.write_entry(key, b"x" * (200 * 1024))


def test_a_journal_that_is_gone_is_found_before_anything_is_sent(journal: Journal):
    (journal.folder / journal.id / "lock").unlink()
    (journal.folder / journal.id).rmdir()
    with pytest.raises(Failure) as caught:
        journal.reserve(an_attempt(journal))
    assert caught.value.code is ErrorCode.JOURNAL_UNAVAILABLE


@pytest.mark.parametrize("size", [0, 10, 200, -1])
def test_a_torn_entry_is_told_from_a_whole_one(journal: Journal, key: SealingKey, size: int):
    path = kept(journal, key).path
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(Failure) as caught:
        opened(path, key)
    assert caught.value.code is ErrorCode.SEAL_BROKEN


@pytest.mark.parametrize("field", ["tenant", "connection_id", "kind", "from_generation", "attempt_id"])
def test_a_changed_header_opens_nothing(journal: Journal, key: SealingKey, field: str):
    path = kept(journal, key).path
    first, _, sealed = path.read_bytes().partition(b"\n")
    changed = json.loads(first) | {field: {"from_generation": 4, "kind": "code_exchange"}.get(field, "att_2")}
    moved = path.with_name("att_2.entry") if field == "attempt_id" else path
    moved.write_bytes(json.dumps(changed).encode() + b"\n" + sealed)
    entry = JournalEntry.read(moved)
    with pytest.raises(Failure) as caught:
        open_sealed(key, entry.header.associated_data, entry.sealed)
    assert caught.value.code is ErrorCode.SEAL_BROKEN


def test_what_can_be_known_of_another_worker_on_the_host(tmp_path: Path, key: SealingKey):
    owner, other = Journal(tmp_path / "journals"), Journal(tmp_path / "journals")
    attempt = an_attempt(owner)
    assert other.status_of(attempt) == AttemptStatus(True, False, False), "its section has ended"
    room = owner.reserve(attempt)
    under_way = other.status_of(attempt)
    assert replace(under_way, age_s=None) == AttemptStatus(True, True, False)
    assert under_way.age_s is not None
    assert 0 <= under_way.age_s < 60
    assert owner.status_of(attempt).age_s is None, "its own sections know better"
    room.write_entry(key, SECRET)
    assert other.status_of(attempt) == AttemptStatus(True, False, True)
    owner.release()
    assert other.status_of(attempt) == AttemptStatus(False, False, True)
    elsewhere = attempt.model_copy(update={"journal_id": "jrn_elsewhere"})
    assert other.status_of(elsewhere) == AttemptStatus(None, None, False)


def test_a_worker_that_was_stopped_before_it_sent_is_fenced_off(tmp_path: Path):
    owner, other = Journal(tmp_path / "journals"), Journal(tmp_path / "journals")
    room = owner.reserve(an_attempt(owner))
    assert other.fence(an_attempt(owner))
    assert not room.begin_send(), "it doesn't send any more"


def test_a_worker_that_is_between_its_check_and_its_last_byte_can_t_be_fenced_off(tmp_path: Path):
    owner, other = Journal(tmp_path / "journals"), Journal(tmp_path / "journals")
    room = owner.reserve(an_attempt(owner))
    assert room.begin_send()
    assert not other.fence(an_attempt(owner))
    room.end_send()
    assert other.fence(an_attempt(owner))


def test_the_answer_of_a_worker_that_was_fenced_off_is_kept(tmp_path: Path, key: SealingKey):
    owner, other = Journal(tmp_path / "journals"), Journal(tmp_path / "journals")
    room = owner.reserve(an_attempt(owner))
    room.begin_send()
    room.end_send()
    other.fence(an_attempt(owner))
    assert opened(room.write_entry(key, SECRET).path, key) == SECRET


def test_nobody_is_fenced_off_on_another_host_or_when_gone(tmp_path: Path):
    owner, other = Journal(tmp_path / "journals"), Journal(tmp_path / "journals")
    owner.reserve(an_attempt(owner))
    elsewhere = an_attempt(owner).model_copy(update={"journal_id": "jrn_elsewhere"})
    assert other.fence(elsewhere)
    owner.release()
    assert other.fence(an_attempt(owner))


def test_a_worker_that_died_before_it_sent_has_used_nothing(tmp_path: Path):
    owner, other = Journal(tmp_path / "journals"), Journal(tmp_path / "journals")
    sent, not_sent = an_attempt(owner, "att_1"), an_attempt(owner, "att_2")
    owner.reserve(sent).begin_send()
    room = owner.reserve(not_sent)
    assert not other.status_of(not_sent).unsent, "it may send yet"
    owner.release()
    assert not other.status_of(sent).unsent
    assert other.status_of(not_sent).unsent
    assert owner.status_of(not_sent).in_flight, "its own process knows better"
    path = tmp_path / "journals" / owner.id / "att_2.room"
    path.write_bytes(path.read_bytes().replace(path.read_bytes()[:36], b"0" * 36))
    assert not other.status_of(not_sent).unsent, "another run of the machine: nothing is certain"
    room.release()


def test_only_the_journals_of_the_gone_are_free(tmp_path: Path, key: SealingKey):
    owner, other = Journal(tmp_path / "journals"), Journal(tmp_path / "journals")
    entry = kept(owner, key)
    with other.abandoned_paths() as found:
        assert found == []
    owner.release()
    third = Journal(tmp_path / "elsewhere")
    third.release()
    with other.abandoned_paths() as found:
        assert found == [entry.path]
        assert other.status_of(an_attempt(owner)).owner_alive is True, "nobody else may replay it meanwhile"


def test_the_next_owner_of_a_directory_has_its_entries(tmp_path: Path, key: SealingKey):
    owner = Journal(tmp_path / "journals")
    entry = kept(owner, key)
    owner.reserve(an_attempt(owner, "att_9"))  # it dies before an answer comes
    owner.release()
    heir = Journal(tmp_path / "journals")
    assert heir.id == owner.id
    assert heir.own_paths() == [entry.path, entry.path.with_name("att_9.room")]


def test_what_can_t_be_read_is_kept_out_of_the_way(journal: Journal, key: SealingKey):
    path = journal.set_aside(kept(journal, key).path)
    assert path.exists()
    assert journal.own_paths() == []
    assert journal.count_waiting() == (0, 1)


def test_an_answer_is_packed_whole_and_shows_nothing():
    reply = RawReply(200, {"date": "x"}, b'{"access_token": "\xff\n"}')
    answer = JournaledReply({"tenant": "acme"}, NOW, reply)
    assert JournaledReply.unpack(answer.pack()) == answer
    assert "access_token" not in repr(answer)
    for broken in (b"", b"{}\nx", b"[1]\n", b'{"order": 1, "status": 1, "headers": {}}'):
        with pytest.raises(Failure) as caught:
            JournaledReply.unpack(broken)
        assert caught.value.code is ErrorCode.SEAL_BROKEN


def test_whose_an_attempt_without_a_row_is_can_be_found(journal: Journal, key: SealingKey):
    assert journal.owner_of(AttemptId("att_1")) is None
    room = journal.reserve(an_attempt(journal))
    assert Journal(journal.folder).owner_of(AttemptId("att_1")) == journal.id
    room.write_entry(key, SECRET)
    assert journal.owner_of(AttemptId("att_1")) == journal.id
    assert journal.owner_of(AttemptId("att_2")) is None


def test_what_was_set_aside_takes_turns(journal: Journal, key: SealingKey, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("evergrant_server.journal.journal._SET_ASIDE_BATCH", 2)
    assert journal.set_aside_batch() == []
    paths = [journal.set_aside(kept(journal, key, f"att_{n}").path) for n in range(3)]
    assert [journal.set_aside_batch() for _ in range(3)] == [paths[:2], paths[2:], paths[:2]]
    assert JournalEntry.read(paths[0]).is_set_aside
    assert not kept(journal, key, "att_4").is_set_aside


def test_nobody_fences_himself_off(journal: Journal):
    room = journal.reserve(an_attempt(journal))
    assert journal.fence(an_attempt(journal))
    assert room.begin_send()


async def test_its_threads_end_with_it(journal: Journal):
    assert await journal.in_thread(max, 1, 2, key=lambda it: -it) == 1
    journal.release()
    with pytest.raises(RuntimeError):
        await journal.in_thread(max, 1, 2)
