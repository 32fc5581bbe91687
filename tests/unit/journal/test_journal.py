"""Entries on disk: room first, whole or not there, bound to their attempt, never deleted unread."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from activities.single_use.attempt import JournaledReply
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import AttemptId, ConnectionId, Tenant
from evergrant_server.core.single_use.attempt import Attempt, AttemptKind, AttemptStatus
from evergrant_server.crypto import SealingKey, new_sealing_key, open_sealed
from evergrant_server.journal import Journal, JournalEntry
from providers.responses.raw_reply import RawReply
from tests.fakes.failures import fails

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SECRET = b"rt-a-refresh-token-that-works-once"


def an_attempt(journal_id: str, name: str = "att_1") -> Attempt:
    return Attempt(
        tenant=Tenant("acme"),
        id=AttemptId(name),
        connection_id=ConnectionId("con_1"),
        kind=AttemptKind.REFRESH,
        from_generation=3,
        journal_id=journal_id,
        opened_at=NOW,
        send_by=NOW + timedelta(seconds=15),
    )


@pytest.fixture
def key() -> SealingKey:
    return new_sealing_key("cky")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journals")


def kept(journal: Journal, key: SealingKey, name: str = "att_1") -> JournalEntry:
    return journal.reserve(an_attempt(journal.id, name)).write_entry(key, SECRET)


def opened(path: Path, key: SealingKey) -> bytes:
    entry = JournalEntry.read(path)
    return open_sealed(key, entry.header.associated_data, entry.sealed)


def test_an_overdue_entry_of_a_living_owner_is_replayed_by_one_worker(journal: Journal, key: SealingKey):
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
def test_the_status_of_an_owner_on_another_host_is_unknown(journal: Journal, name: str):
    attempt = an_attempt(journal.id).model_copy(update={"journal_id": name})
    assert journal.status_of(attempt) == AttemptStatus(None, None, False)
    assert [it.name for it in journal.folder.parent.rglob("lock")] == ["lock"], "its own, and no stray one"


def test_a_deleted_journal_refuses_a_reservation(journal: Journal):
    (journal.folder / journal.id / "lock").unlink()
    (journal.folder / journal.id).rmdir()
    with fails(ErrorCode.JOURNAL_UNAVAILABLE):
        journal.reserve(an_attempt(journal.id))


@pytest.mark.parametrize("field", ["tenant", "connection_id", "kind", "from_generation", "attempt_id"])
def test_an_entry_with_a_changed_header_can_t_be_opened(journal: Journal, key: SealingKey, field: str):
    path = kept(journal, key).path
    first, _, sealed = path.read_bytes().partition(b"\n")
    changed = json.loads(first) | {field: {"from_generation": 4, "kind": "code_exchange"}.get(field, "att_2")}
    moved = path.with_name("att_2.entry") if field == "attempt_id" else path
    moved.write_bytes(json.dumps(changed).encode() + b"\n" + sealed)
    entry = JournalEntry.read(moved)
    with fails(ErrorCode.SEAL_BROKEN):
        open_sealed(key, entry.header.associated_data, entry.sealed)


def test_the_status_of_a_neighbours_attempt(tmp_path: Path, key: SealingKey):
    owner, other = Journal(tmp_path / "journals"), Journal(tmp_path / "journals")
    attempt = an_attempt(owner.id)
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


def test_fencing_off_is_for_living_neighbours_that_are_not_sending(tmp_path: Path):
    owner, other = Journal(tmp_path / "journals"), Journal(tmp_path / "journals")
    attempt = an_attempt(owner.id)
    reservation = owner.reserve(attempt)
    assert owner.fence(attempt), "its own attempt is left alone"
    assert reservation.begin_send()
    assert not other.fence(attempt)
    reservation.end_send()
    assert other.fence(attempt.model_copy(update={"journal_id": "jrn_elsewhere"})), "not on this host"
    assert reservation.begin_send()
    reservation.end_send()
    assert other.fence(attempt)
    assert not reservation.begin_send()
    owner.release()
    assert other.fence(attempt), "its owner is gone"


def test_a_dead_owner_that_certainly_sent_nothing_is_unsent(tmp_path: Path):
    owner, other = Journal(tmp_path / "journals"), Journal(tmp_path / "journals")
    sent, not_sent = an_attempt(owner.id, "att_1"), an_attempt(owner.id, "att_2")
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


def test_only_journals_without_an_owner_are_abandoned(tmp_path: Path, key: SealingKey):
    owner, other = Journal(tmp_path / "journals"), Journal(tmp_path / "journals")
    entry = kept(owner, key)
    with other.abandoned_paths() as found:
        assert found == []
    owner.release()
    third = Journal(tmp_path / "elsewhere")
    third.release()
    with other.abandoned_paths() as found:
        assert found == [entry.path]
        assert other.status_of(an_attempt(owner.id)).owner_alive is True, (
            "nobody else may replay it meanwhile"
        )


def test_the_next_owner_of_a_directory_owns_its_entries(tmp_path: Path, key: SealingKey):
    owner = Journal(tmp_path / "journals")
    entry = kept(owner, key)
    owner.reserve(an_attempt(owner.id, "att_9"))  # it dies before an answer comes
    owner.release()
    heir = Journal(tmp_path / "journals")
    assert heir.id == owner.id
    assert heir.own_paths() == [entry.path, entry.path.with_name("att_9.room")]


def test_an_entry_that_is_set_aside_is_kept_and_counted(journal: Journal, key: SealingKey):
    path = journal.set_aside(kept(journal, key).path)
    assert path.exists()
    assert journal.own_paths() == []
    assert journal.count_waiting() == (0, 1)


def test_a_journaled_reply_is_packed_whole_and_hidden_from_repr():
    reply = RawReply(200, {"date": "x"}, b'{"access_token": "\xff\n"}')
    answer = JournaledReply({"tenant": "acme"}, NOW, reply)
    assert JournaledReply.unpack(answer.pack()) == answer
    assert "access_token" not in repr(answer)
    for broken in (b"", b"{}\nx", b"[1]\n", b'{"order": 1, "status": 1, "headers": {}}'):
        with fails(ErrorCode.SEAL_BROKEN):
            JournaledReply.unpack(broken)


def test_the_owner_of_an_attempt_without_a_row_is_found_by_its_file(journal: Journal, key: SealingKey):
    assert journal.owner_of(AttemptId("att_1")) is None
    room = journal.reserve(an_attempt(journal.id))
    assert Journal(journal.folder).owner_of(AttemptId("att_1")) == journal.id
    room.write_entry(key, SECRET)
    assert journal.owner_of(AttemptId("att_1")) == journal.id
    assert journal.owner_of(AttemptId("att_2")) is None


def test_entries_that_are_set_aside_take_turns(
    journal: Journal, key: SealingKey, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("evergrant_server.journal.journal._SET_ASIDE_BATCH", 2)
    assert journal.set_aside_batch() == []
    paths = [journal.set_aside(kept(journal, key, f"att_{n}").path) for n in range(3)]
    assert [journal.set_aside_batch() for _ in range(3)] == [paths[:2], paths[2:], paths[:2]]
    assert JournalEntry.read(paths[0]).is_set_aside
    assert not kept(journal, key, "att_4").is_set_aside


async def test_release_ends_the_journals_threads(journal: Journal):
    assert await journal.in_thread(max, 1, 2, key=lambda it: -it) == 1
    journal.release()
    with pytest.raises(RuntimeError):
        await journal.in_thread(max, 1, 2)
