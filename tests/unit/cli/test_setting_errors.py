"""A setting that can't be meant as it stands: the message names the variable and what to write."""

from pathlib import Path

import pytest

from evergrant_server.settings import BadSettings, load_settings

DATABASE, PUBLIC = "EVERGRANT_DATABASE_URL", "EVERGRANT_PUBLIC_URL"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (PUBLIC, '"https://auth.example.com"', f"{PUBLIC}: remove the quotes"),
        ("EVERGRANT_PORT", "'8480'", "EVERGRANT_PORT: remove the quotes"),
        (PUBLIC, "auth.example.com", "write https://auth.example.com"),
        (DATABASE, "postgres://u:canary@db/evergrant", "use postgresql:// in place of postgres://"),
        (DATABASE, "postgresql+psycopg2://u@db/x", "use postgresql:// in place of postgresql+psycopg2://"),
        (DATABASE, "sqlite://evergrant.db", "use sqlite:/// in place of sqlite://"),
        (DATABASE, "postgresql://u:canary@x@db/evergrant", "%40"),
        ("EVERGRANT_FOUR_EYES", "ja", "EVERGRANT_FOUR_EYES: use true or false"),
        ("EVERGRANT_API_WORKERS", "0", "EVERGRANT_API_WORKERS: must be at least 1"),
        ("EVERGRANT_LOG_FORMAT", "xml", "EVERGRANT_LOG_FORMAT: use 'text' or 'json'"),
        ("EVERGRANT_HOST", "http://0.0.0.0", "EVERGRANT_HOST: must be an address"),
        ("EVERGRANT_HOST", "0.0.0.0:8480", "EVERGRANT_HOST: must be an address"),
        ("EVERGRANT_HOST", "192.0.2.9", "EVERGRANT_PUBLIC_URL: is needed, since EVERGRANT_HOST 192.0.2.9"),
        ("EVERGRANT_EXPIRY_ANNOUNCE_DAYS", "14d,3d", "give days from 1 to 365, such as 14,3,1"),
        ("EVERGANT_PORT", "9000", "EVERGANT_PORT: there is no such setting; did you mean EVERGRANT_PORT?"),
    ],
)
def test_a_variable_is_named_with_what_to_write(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(name, value)
    with pytest.raises(BadSettings) as refused:
        load_settings()
    assert said in str(refused.value)
    assert "canary" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"# mine\nEVERGRANT_PORT: 9000\n", "evergrant.env, line 2: is not NAME=value"),
        ("EVERGRANT_PORT=9000\n".encode("utf-16"), "evergrant.env: can't be read (not UTF-8 text)"),
        (b"PORT=9000\n", "PORT: there is no such setting; did you mean EVERGRANT_PORT?"),
        (b"EVERGRANT_PROT=9000\n", "did you mean EVERGRANT_PORT?"),
    ],
)
def test_a_line_of_the_file_is_named(content: bytes, said: str):
    Path("evergrant.env").write_bytes(content)
    with pytest.raises(BadSettings) as refused:
        load_settings()
    assert said in str(refused.value)


def test_an_editor_s_byte_order_mark_hides_no_setting():
    Path("evergrant.env").write_bytes(b"\xef\xbb\xbfEVERGRANT_PORT=9000\n")
    assert load_settings().port == 9000


def test_an_empty_variable_is_the_default_and_no_folder(monkeypatch: pytest.MonkeyPatch):
    for name in ("EVERGRANT_DATA_DIR", "EVERGRANT_KEY_FILE", "EVERGRANT_METRICS_PORT"):
        monkeypatch.setenv(name, "")
    settings = load_settings()
    assert settings.data_dir == Path(".evergrant").absolute()
    assert settings.key_path == settings.data_dir / "keys.json"
    assert settings.metrics_port is None


def test_variables_of_other_programs_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    for name in ("PORT", "DATABASE_URL", "EVERGREEN_PORT", "EVERGRANT_URL", "EVERGRANT_API_KEY"):
        monkeypatch.setenv(name, "'x'")
    load_settings()


def test_a_copy_of_the_settings_on_this_machine_is_good():
    settings = load_settings()
    copy = settings.__replace__(temporal_address="127.0.0.1:7300")
    assert copy.client_metadata_url == settings.client_metadata_url != ""
