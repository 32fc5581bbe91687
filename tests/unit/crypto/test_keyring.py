"""The key file and the ring: purposes by role, rotation, and every file that is refused."""

import base64
import json
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.crypto import ROOT_PURPOSES, AssociatedData, KeyPurpose, KeyRing, Role, new_sealing_key
from evergrant_server.crypto.keyfile import is_weak
from tests.fakes.failures import fails

PLACE = AssociatedData("acme", "key", "tky_1", "sealed_key:refresh:")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    KeyRing.create(tmp_path / "keys.json")
    return tmp_path / "keys.json"


def refusal(act: Callable[[], Any]) -> Failure:
    with fails(ErrorCode.KEY_UNAVAILABLE) as caught:
        act()
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_new_file_is_private_and_leaves_nothing_beside_it(path: Path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [it.name for it in path.parent.iterdir()] == ["keys.json"]


def test_an_existing_file_is_never_replaced(path: Path):
    before = path.read_bytes()
    assert "exists" in refusal(lambda: KeyRing.create(path)).detail
    assert path.read_bytes() == before
    assert [it.name for it in path.parent.iterdir()] == ["keys.json"]


def test_a_dangling_link_is_not_followed_at_creation(tmp_path: Path):
    (tmp_path / "keys.json").symlink_to(tmp_path / "elsewhere")
    refusal(lambda: KeyRing.create(tmp_path / "keys.json"))
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o666])
def test_a_file_open_to_others_is_refused_with_the_repair(path: Path, mode: int):
    path.chmod(mode)
    assert f"chmod 600 {path}" in refusal(lambda: KeyRing.open(path, Role.API)).detail


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(path: Path):
    os.chown(path, 12345, -1)
    assert "another user" in refusal(lambda: KeyRing.open(path, Role.API)).detail


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "doesn't exist" in refusal(lambda: KeyRing.open(tmp_path / "none", Role.API)).detail
    assert "regular" in refusal(lambda: KeyRing.open(tmp_path / "pipe", Role.API)).detail
    refusal(lambda: KeyRing.open(tmp_path, Role.API))


def _set(*names: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        for name in names[:-1]:
            document = document[name]
        document[names[-1]] = to

    return change


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


@pytest.mark.parametrize(
    "change",
    [
        _set("format", to="other"),
        _set("version", to=2),
        _set("purposes", to={}),
        _set("purposes", to=[]),
        _set("purposes", "lease", to=None),
        _set("purposes", "lease", "keys", to={}),
        _set("purposes", "lease", "current", to="root_none"),
        _set("purposes", "lease", "keys", "", to="x"),
        _set("subject", to=None),
        _set("subject", to="not base64!"),
        _set("derive", to=_b64(b"short")),
        _set("derive", to=_b64(bytes(32))),
        _set("derive", to=_b64(b"\xff" * 32)),
        _set("derive", to=_b64(bytes(range(32)))),
        _set("derive", to=_b64(b"change-me-change-me-change-me-!!")),
    ],
)
def test_a_malformed_or_weak_file_is_refused(path: Path, change: Callable[[dict[str, Any]], None]):
    document = json.loads(path.read_text())
    held = [key for purpose in document["purposes"].values() for key in purpose["keys"].values()]
    change(document)
    path.write_text(json.dumps(document))
    failure = refusal(lambda: KeyRing.open(path, Role.API))
    assert not any(key in str(failure) for key in held)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, '{"format": 1, "format": 2}'])
def test_what_is_not_our_json_is_refused(path: Path, content: str):
    path.write_text(content)
    refusal(lambda: KeyRing.open(path, Role.API))


def test_one_key_used_twice_is_refused(path: Path):
    document = json.loads(path.read_text())
    document["subject"] = document["derive"]
    path.write_text(json.dumps(document))
    assert "twice" in refusal(lambda: KeyRing.open(path, Role.API)).detail


def test_random_keys_do_not_look_weak():
    assert not any(is_weak(os.urandom(32)) for _ in range(5_000))


def test_the_api_role_never_holds_the_refresh_purpose(path: Path):
    api, worker = KeyRing.open(path, Role.API), KeyRing.open(path, Role.WORKER)
    key = new_sealing_key("tky")
    wrapped = worker.wrap(KeyPurpose.REFRESH, PLACE, key)
    assert worker.unwrap(KeyPurpose.REFRESH, PLACE, key.id, wrapped).reveal() == key.reveal()
    failure = refusal(lambda: api.unwrap(KeyPurpose.REFRESH, PLACE, key.id, wrapped))
    assert failure.context["row"] == "tky_1"
    refusal(lambda: api.wrap(KeyPurpose.REFRESH, PLACE, key))
    for purpose in (KeyPurpose.LEASE, KeyPurpose.INTAKE):  # with the purposes it has, it can't open it either
        refusal(lambda purpose=purpose: api.unwrap(purpose, PLACE, key.id, wrapped))
    held = {purpose for purpose in ROOT_PURPOSES if api.holds(purpose)}
    assert held == {KeyPurpose.LEASE, KeyPurpose.INTAKE}


def test_the_api_role_neither_widens_nor_rotates_what_it_lacks(path: Path):
    api = KeyRing.open(path, Role.API)
    refusal(lambda: api.export(path.with_name("full.json"), Role.WORKER))
    refusal(lambda: api.rotate(KeyPurpose.REFRESH))


def test_an_export_for_the_api_holds_no_refresh_key(path: Path):
    exported = path.with_name("api.json")
    full = KeyRing.open(path, Role.OPERATOR)
    full.export(exported, Role.API)
    refresh = json.loads(path.read_text())["purposes"]["refresh"]["keys"].values()
    assert not any(key in exported.read_text() for key in refresh)
    api = KeyRing.open(exported, Role.API)
    assert api.current_root_id(KeyPurpose.LEASE) == full.current_root_id(KeyPurpose.LEASE)
    assert "refresh" in refusal(lambda: KeyRing.open(exported, Role.WORKER)).detail
    assert "full" in refusal(lambda: api.rotate(KeyPurpose.LEASE)).detail
    assert not full.export(exported, Role.API), "it is that already"


def test_rotation_seals_with_a_new_key_and_opens_with_the_old(path: Path):
    first = KeyRing.open(path, Role.WORKER)
    key = new_sealing_key("tky")
    old = first.wrap(KeyPurpose.REFRESH, PLACE, key)
    second = first.rotate(KeyPurpose.REFRESH)
    assert second.current_root_id(KeyPurpose.REFRESH) != first.current_root_id(KeyPurpose.REFRESH)
    assert second.current_root_id(KeyPurpose.LEASE) == first.current_root_id(KeyPurpose.LEASE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for ring in (second, KeyRing.open(path, Role.WORKER)):
        assert ring.unwrap(KeyPurpose.REFRESH, PLACE, key.id, old).reveal() == key.reveal()
    new = second.wrap(KeyPurpose.REFRESH, PLACE, key)
    unknown = refusal(lambda: first.unwrap(KeyPurpose.REFRESH, PLACE, key.id, new))
    assert "not in the key ring" in unknown.detail


def test_rotations_at_once_lose_no_key(path: Path):
    ring = KeyRing.open(path, Role.OPERATOR)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: ring.rotate(KeyPurpose.LEASE), range(8)))
    assert len(json.loads(path.read_text())["purposes"]["lease"]["keys"]) == 9


def test_hashes_and_derived_keys_are_keyed_and_outlive_a_rotation(path: Path, tmp_path: Path):
    api, worker = KeyRing.open(path, Role.API), KeyRing.open(path, Role.WORKER)
    stranger = KeyRing.create(tmp_path / "other.json")
    digest, derived = api.subject_hash("acme", "user-1"), api.derive("csrf")
    assert len(digest) == 32
    assert int(digest, 16)
    assert len(derived) == 32
    rotated = worker.rotate(KeyPurpose.INTAKE).rotate(KeyPurpose.LEASE)
    assert rotated.subject_hash("acme", "user-1") == digest
    assert rotated.derive("csrf") == derived
    assert worker.subject_hash("acm", "euser-1") != digest
    assert stranger.subject_hash("acme", "user-1") != digest
    assert stranger.derive("csrf") != derived
    assert api.derive("cookies") != derived


def test_a_ring_does_not_print_its_keys(path: Path):
    ring = KeyRing.open(path, Role.API)
    assert repr(ring) == f"KeyRing({str(path)!r}, api)"


def test_a_workers_mac_survives_a_rotation_and_the_api_can_neither_make_nor_check_it(path: Path):
    ring = KeyRing.open(path, Role.WORKER)
    before = ring.worker_mac("destination", "ab", "c")
    rotated = KeyRing.open(path, Role.OPERATOR).rotate(KeyPurpose.REFRESH)
    assert rotated.is_worker_mac(before, "destination", "ab", "c")
    assert not rotated.is_worker_mac(before, "destination", "a", "bc")
    assert not any(
        rotated.is_worker_mac(it, "destination", "ab", "c") for it in (None, "", "x.y", before[:-1])
    )
    api = KeyRing.open(path, Role.API)
    assert api.keyed_hash("app", "one") == rotated.keyed_hash("app", "one")
    assert not api.is_worker_mac(before, "destination", "ab", "c")
    refusal(lambda: api.worker_mac("destination", "ab", "c"))
