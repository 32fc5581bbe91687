"""The settings of the installation's stream: what its files hold, and what is wrong with one."""

from pathlib import Path
from typing import Any

import pytest

from evergrant_server.core.webhook_signatures import new_signing_secret
from evergrant_server.settings import BadSettings, Settings, load_settings

URL = "http://collector:4318/v1/logs"


def with_files(folder: Path, headers: str = "", secret: str = "") -> Settings:
    (folder / "headers").write_text(headers, encoding="utf-8")
    (folder / "secret").write_text(secret, encoding="utf-8")
    files: dict[str, Any] = {
        "audit_stream_headers_file": folder / "headers",
        "audit_stream_secret_file": folder / "secret",
    }
    return load_settings(data_dir=folder, audit_stream_url=URL, **files)


def test_headers_and_the_secret_are_read_from_files(tmp_path: Path):
    secret = new_signing_secret(b"a secret of a stream, 32 bytes !")
    settings = with_files(tmp_path, "Authorization: Splunk a b\n\nDD-API-KEY:x\n", f"{secret.reveal()}\n")
    headers = {name: value.reveal() for name, value in settings.stream_headers().items()}
    assert headers == {"Authorization": "Splunk a b", "DD-API-KEY": "x"}
    assert [one.reveal() for one in settings.stream_secrets()] == [secret.reveal()]
    assert settings.stream_host_port == "collector:4318"


@pytest.mark.parametrize("line", ["no colon", "Empty:", ": nameless", "A: b\x00c", "Na me: x", "A: é"])
def test_a_line_that_is_no_header_is_named_and_not_quoted(tmp_path: Path, line: str):
    with pytest.raises(BadSettings, match=r"line 2 of .* write Name: value") as refused:
        with_files(tmp_path, f"A: b\n{line}").stream_headers()
    assert line not in str(refused.value)


@pytest.mark.parametrize("secret", ["", "whsec_", "hush", "whsec_short", f"whsec_{'a' * 33}"])
def test_what_is_no_secret_is_refused_with_what_is_one(tmp_path: Path, secret: str):
    with pytest.raises(BadSettings, match="holds no secret; write whsec_"):
        with_files(tmp_path, secret=secret).stream_secrets()


def test_a_file_that_is_missing_is_named(tmp_path: Path):
    settings = load_settings(
        data_dir=tmp_path, audit_stream_url=URL, audit_stream_headers_file=tmp_path / "none"
    )
    with pytest.raises(BadSettings, match=r"EVERGRANT_AUDIT_STREAM_HEADERS_FILE: .*none can't be read"):
        settings.stream_headers()


@pytest.mark.parametrize(
    "wrong",
    [
        {"audit_stream_url": "collector:4318"},
        {"audit_stream_url": "ftp://collector/x"},
        {"audit_stream_url": "https://user:password@collector/x"},
        {"audit_stream_url": URL, "audit_stream_format": "syslog"},
        {"audit_stream_secret_file": Path("secret")},
    ],
)
def test_a_stream_that_cant_be_is_refused_by_the_name_of_its_setting(tmp_path: Path, wrong: dict[str, Any]):
    with pytest.raises(BadSettings, match="EVERGRANT_AUDIT_STREAM_"):
        load_settings(data_dir=tmp_path, **wrong)
