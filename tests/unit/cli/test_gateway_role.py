"""`db gateway-role` and the options of `db upgrade`: what is printed, and what is refused before a change."""

from pathlib import Path

import pytest

from evergrant_server.cli.db import gateway_password, gateway_role
from evergrant_server.settings import BadSettings, Settings, load_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(data_dir=tmp_path, database_url="postgresql://evergrant@db/evergrant")


def test_the_sql_is_printed_for_an_administrator(capsys: pytest.CaptureFixture[str]) -> None:
    gateway_role("evergrant_gateway")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'REVOKE ALL ON ALL TABLES IN SCHEMA "public" FROM "evergrant_gateway";'
    assert all(it.startswith("GRANT ") and it.endswith(' TO "evergrant_gateway";') for it in lines[1:])
    assert not any("DELETE" in it or "ALL PRIVILEGES" in it for it in lines[1:])


def test_sqlite_has_no_roles(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="SQLite has no roles"):
        gateway_password(load_settings(data_dir=tmp_path), "evergrant_gateway", None)


def test_a_password_is_a_roles_and_is_read_from_its_file(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("canary\n")
    assert gateway_password(settings, "evergrant_gateway", file) == "canary"
    assert gateway_password(settings, "evergrant_gateway", None) is None
    with pytest.raises(BadSettings, match="--gateway-role"):
        gateway_password(settings, None, file)
    for content, why in (("", "is empty"), ("pässword", "isn't ASCII")):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(BadSettings, match=why):
            gateway_password(settings, "evergrant_gateway", file)
    with pytest.raises(BadSettings, match="No such file"):
        gateway_password(settings, "evergrant_gateway", tmp_path / "none")
