"""The copies of a key file for API and gateways: made anew after a rotation, never over what is no copy."""

import json
import stat
from pathlib import Path

import pytest

from evergrant_server.core.errors import ErrorCode
from evergrant_server.crypto import KeyPurpose, KeyRing, Role
from tests.fakes.failures import fails

COPIES = [Role.API, Role.GATEWAY]


@pytest.fixture
def full(tmp_path: Path) -> KeyRing:
    return KeyRing.create(tmp_path / "keys.json")


@pytest.mark.parametrize("role", COPIES)
def test_a_copy_follows_a_rotation(full: KeyRing, tmp_path: Path, role: Role):
    copy = tmp_path / "copies/keys.json"
    assert full.export(copy, role)
    assert not full.export(copy, role)
    rotated = full.rotate(KeyPurpose.LEASE)
    assert rotated.export(copy, role)
    newest = rotated.current_root_id(KeyPurpose.LEASE)
    assert KeyRing.open(copy, role).current_root_id(KeyPurpose.LEASE) == newest
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert [file.name for file in copy.parent.iterdir()] == ["keys.json"]


def test_a_gateways_copy_of_an_older_version_gets_what_it_lacks(full: KeyRing, tmp_path: Path):
    copy = tmp_path / "gateway.json"
    full.export(copy, Role.GATEWAY)
    document = json.loads(copy.read_bytes())
    del document["derived"]["mcp-session"]
    copy.write_text(json.dumps(document))
    with fails(ErrorCode.KEY_UNAVAILABLE, "keys export-gateway"):
        KeyRing.open(copy, Role.GATEWAY)
    assert full.export(copy, Role.GATEWAY)
    assert len(KeyRing.open(copy, Role.GATEWAY).derive("mcp-session")) == 32


@pytest.mark.parametrize("role", COPIES)
def test_what_is_no_older_copy_stays(full: KeyRing, tmp_path: Path, role: Role):
    """A full key file, another role's copy, another installation's, and a copy of a newer full file."""
    copies = {copied: tmp_path / f"{copied}.json" for copied in COPIES}
    for copied, path in copies.items():
        full.export(path, copied)
    whole = tmp_path / "whole.json"
    other = KeyRing.create(whole)
    foreign = tmp_path / "foreign.json"
    other.export(foreign, role)
    newer = tmp_path / "newer.json"
    older = (tmp_path / "keys.json").read_bytes()
    full.rotate(KeyPurpose.LEASE).export(newer, role)
    (tmp_path / "keys.json").write_bytes(older)
    full = KeyRing.open(tmp_path / "keys.json", Role.OPERATOR)
    (wrong,) = [path for copied, path in copies.items() if copied is not role]
    refusals = {
        whole: "is a full key file",
        wrong: "'s copy",
        foreign: "is of another installation",
        newer: "the full key file lacks",
    }
    for path, words in refusals.items():
        before = path.read_bytes()
        with fails(ErrorCode.KEY_UNAVAILABLE, words):
            full.export(path, role)
        assert path.read_bytes() == before
