"""`db role` and the options of `db upgrade`: what is printed, and what is refused before a change."""

import re
from pathlib import Path

import pytest

from evergrant_server.cli.db import ProcessRole, ProcessRoles, role
from evergrant_server.crypto import Role
from evergrant_server.settings import BadSettings, Settings, load_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(data_dir=tmp_path, database_url="postgresql://evergrant@db/evergrant")


def test_the_sql_is_printed_for_an_administrator(capsys: pytest.CaptureFixture[str]) -> None:
    role("gateway", "evergrant_gateway")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'REVOKE ALL ON ALL TABLES IN SCHEMA "public" FROM "evergrant_gateway";'
    assert all(it.startswith("GRANT ") and it.endswith(' TO "evergrant_gateway";') for it in lines[1:])
    assert not any("DELETE" in it or "ALL PRIVILEGES" in it for it in lines[1:])
    role("api", "evergrant_api")
    (deletes,) = [it for it in capsys.readouterr().out.splitlines() if it.startswith("GRANT DELETE")]
    assert {"audit", "usage"} & set(re.findall(r"\w+", deletes)) == {"usage"}


def test_sqlite_has_no_roles(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="SQLite has no roles"):
        ProcessRoles(gateway_role="evergrant_gateway").read(load_settings(data_dir=tmp_path))


def test_a_password_is_a_roles_and_is_read_from_its_file(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("canary\n")
    gateway = "evergrant_gateway"
    both = ProcessRoles(gateway_role=gateway, gateway_password_file=file, api_role="evergrant_api")
    assert both.read(settings) == [
        ProcessRole(Role.API, "evergrant_api", None),
        ProcessRole(Role.GATEWAY, gateway, "canary"),
    ]
    with pytest.raises(BadSettings, match="--gateway-role"):
        ProcessRoles(gateway_password_file=file).read(settings)
    for content, why in (("", "is empty"), ("pässword", "isn't ASCII")):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(BadSettings, match=why):
            both.read(settings)
    with pytest.raises(BadSettings, match="No such file"):
        ProcessRoles(api_role="evergrant_api", api_password_file=tmp_path / "none").read(settings)
