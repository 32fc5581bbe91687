"""Secrets stay inside: a lease can't be printed, pickled, copied or serialised, and no API key is shown."""

import base64
import copy
import dataclasses
import json
import logging
import os
import pickle
import pprint
import traceback
from datetime import UTC, datetime, timedelta
from io import StringIO
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from evergrant import AsyncEvergrant, BadRequest, Evergrant, Lease, LeaseLeak
from evergrant.origins import ServerAddress
from evergrant.temporal.leases import contains_secret
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticSerializationError, to_json
from rich.console import Console
from rich.pretty import Pretty
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.converter import DataConverter

from tests.unit.client.conftest import Caller, Command
from tests.unit.client.scripted_evergrant import TOKEN, ScriptedEvergrant, lease, leased

SECRETS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=16, max_size=80)
ENCODINGS = {
    "raw": str.encode,
    "json": lambda secret: json.dumps({"a": [secret]}).encode(),
    "url": lambda secret: quote(secret, safe="").encode(),
    "form": lambda secret: urlencode({"access_token": secret}).encode(),
    "hex": lambda secret: secret.encode().hex().encode(),
    "base64": lambda secret: base64.b64encode(secret.encode()),
    "base64url": lambda secret: base64.urlsafe_b64encode(secret.encode()),
}


@pytest.fixture(name="leased")
def a_lease() -> Lease:
    return leased(datetime(2030, 1, 1, tzinfo=UTC))


def test_printing_and_logging_show_no_token(leased: Lease, caplog: pytest.LogCaptureFixture):
    logging.getLogger("user").warning("%s %r", leased, {"lease": leased})
    pretty = Console(record=True, width=200, file=StringIO())
    pretty.print(leased, [leased])
    pretty.print(Pretty({"lease": leased}, expand_all=True))
    shown = f"{leased} {leased!r} {leased!a} {[leased]}" + pprint.pformat({"lease": leased})
    shown += caplog.text + pretty.export_text()
    assert TOKEN not in shown
    assert shown.count("***") == 10


def test_a_traceback_with_locals_shows_no_token(leased: Lease):
    def fails(lease: Lease) -> None:
        raise ValueError("went wrong")

    try:
        fails(leased)
    except ValueError as error:
        shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "Lease(access_token=***" in shown
    assert TOKEN not in shown


@pytest.mark.parametrize(
    "copy_it",
    [
        *(lambda leased, p=p: pickle.dumps(leased, p) for p in range(pickle.HIGHEST_PROTOCOL + 1)),
        lambda leased: ForkingPickler.dumps({"lease": leased}),
        copy.copy,
        copy.deepcopy,
        lambda leased: leased.__getstate__(),
    ],
)
def test_pickling_and_copying_are_refused(leased: Lease, copy_it):
    with pytest.raises(LeaseLeak):
        copy_it(leased)


@pytest.mark.parametrize(
    "serialise",
    [
        json.dumps,
        vars,
        dataclasses.asdict,
        dict,
        list,
        lambda leased: to_json({"lease": leased}),
        lambda leased: DataConverter.default.payload_converter.to_payloads([{"lease": leased}]),
        lambda leased: pydantic_data_converter.payload_converter.to_payloads([{"lease": leased}]),
    ],
)
def test_serialising_is_refused(leased: Lease, serialise):
    with pytest.raises((TypeError, PydanticSerializationError)):
        serialise(leased)


def test_a_lease_is_immutable(leased: Lease):
    with pytest.raises(AttributeError):
        leased.generation = 2  # type: ignore[misc]  # what is tested
    with pytest.raises(AttributeError):
        del leased.access_token


@pytest.fixture
def http_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """The HTTP libraries' loggers with their defaults, even if a server's test has silenced them."""
    for name, logger in logging.Logger.manager.loggerDict.items():
        if name.startswith(("httpx2", "httpcore2")) and isinstance(logger, logging.Logger):
            monkeypatch.setattr(logger, "filters", [])
            monkeypatch.setattr(logger, "level", logging.NOTSET)
    logging.Logger.manager._clear_cache()  # type: ignore[attr-defined]  # levels are cached


async def test_debug_logs_hold_neither_key_nor_token(
    caller: Caller, evergrant: ScriptedEvergrant, caplog: pytest.LogCaptureFixture, http_logging: None
):
    evergrant.script("POST /v1/lease", lease())
    with caplog.at_level(logging.DEBUG):
        await caller.call("lease", "crm", "alice")
    assert "/v1/lease" in caplog.text
    assert TOKEN not in caplog.text
    assert "evg_key_canary" not in caplog.text


class TestServerAddress:
    def test_arguments_win_over_the_environment(self):
        env = {"EVERGRANT_URL": "https://a.example/", "EVERGRANT_API_KEY": "env"}
        assert ServerAddress.from_settings(environ=env) == ServerAddress("https://a.example", "env")
        given_address = ServerAddress.from_settings("https://b.example", "arg", environ=env)
        assert given_address == ServerAddress("https://b.example", "arg")

    def test_a_key_file_is_read_without_its_line_break(self, tmp_path: Path):
        file = tmp_path / "key"
        file.write_text("evg_from_file\n")
        env = {"EVERGRANT_URL": "http://localhost:8080", "EVERGRANT_API_KEY_FILE": str(file)}
        assert ServerAddress.from_settings(environ=env).api_key == "evg_from_file"

    def test_repr_hides_the_key(self):
        assert "canary" not in repr(ServerAddress("https://a.example", "canary"))

    @pytest.mark.parametrize(
        ("url", "env", "code"),
        [
            (None, {}, "url_missing"),
            ("ftp://a.example", {}, "url_invalid"),
            ("https://", {}, "url_invalid"),
            ("http://a.example", {}, "plain_http_refused"),
            ("http://127.0.0.1.a.example", {}, "plain_http_refused"),
            ("https://a.example", {}, "api_key_missing"),
            ("https://a.example", {"EVERGRANT_API_KEY_FILE": "/does/not/exist"}, "api_key_file_unreadable"),
        ],
    )
    def test_bad_settings_have_a_code_and_a_repair(self, url: str | None, env: dict[str, str], code: str):
        with pytest.raises(BadRequest) as refused:
            ServerAddress.from_settings(url, environ=env)
        assert refused.value.code == code
        assert "EVERGRANT_" in refused.value.repair

    @pytest.mark.parametrize("url", ["http://127.8.9.1:1", "http://[::1]:1", "http://localhost"])
    def test_plain_http_is_for_loopback(self, url: str):
        assert ServerAddress.from_settings(url, "key", environ={}).url == url

    def test_plain_http_to_another_machine_has_to_be_allowed(self):
        ServerAddress.from_settings("http://a.example", "key", allow_plain_http=True, environ={})
        ServerAddress.from_settings("http://a.example", "key", environ={"EVERGRANT_ALLOW_PLAIN_HTTP": "1"})


BAD_KEYS = {
    "line break at the end": "evg_canary\n",
    "header": "evg_canary\r\nx: y",
    "space": "evg canary",
    "nul": "evg_can\x00ary",
    "not ASCII": "evg_canary\u00e9",
    "line separator": "\u2028canary",
}


async def request_lease(client: type[Evergrant | AsyncEvergrant], url: str, key: str | None) -> Lease:
    asked = client(url, key, deadline=timedelta(seconds=1)).lease("crm", "alice")
    return asked if isinstance(asked, Lease) else await asked


class TestAKeyThatCanNotStandInAHeader:
    """RFC 9110 section 5.5: refused once, before any request; no text of an exception quotes it."""

    @pytest.mark.parametrize("key", BAD_KEYS.values(), ids=BAD_KEYS)
    @pytest.mark.parametrize("client", [Evergrant, AsyncEvergrant])
    @pytest.mark.parametrize("source", ["argument", "environment", "file"])
    async def test_one_plain_error_at_once(
        self,
        client: type[Evergrant | AsyncEvergrant],
        key: str,
        source: str,
        evergrant: ScriptedEvergrant,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ):
        evergrant.script("POST /v1/lease", lease())
        if source == "file":
            key = f"evg\n{key}"
            (tmp_path / "key").write_text(key, encoding="utf-8", newline="")
            monkeypatch.setenv("EVERGRANT_API_KEY_FILE", str(tmp_path / "key"))
        elif source == "environment":
            monkeypatch.setattr(os, "environ", dict(os.environ) | {"EVERGRANT_API_KEY": key})
        arguments = (evergrant.url, key if source == "argument" else None)
        with pytest.raises(BadRequest) as refused:
            await request_lease(client, *arguments)
        assert refused.value.code == "api_key_invalid"
        assert "EVERGRANT_API_KEY" in refused.value.repair
        assert evergrant.requests == []
        shown = "".join(traceback.format_exception(refused.value))
        assert "canary" not in shown
        assert (refused.value.__cause__, refused.value.__context__) == (None, None)

    def test_the_command_says_so_in_one_line(self, command: Command, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("EVERGRANT_API_KEY", "evg_canary\n")
        ended = command("token", "crm", "alice")
        assert ended.status != 0
        assert ended.err.startswith("evergrant: api_key_invalid: ")
        assert ended.err.count("\n") == 1
        assert "canary" not in ended.out + ended.err


class TestLeakDetection:
    @pytest.mark.parametrize("encoding", ENCODINGS)
    @given(secret=SECRETS)
    def test_a_secret_is_found_in_each_encoding(self, encoding: str, secret: str):
        data = b"before " + ENCODINGS[encoding](secret) + b" after"
        assert contains_secret(data, ["another secret entirely", secret])

    @given(secret=SECRETS, before=st.binary(max_size=5), after=st.binary(max_size=5))
    def test_a_secret_is_found_inside_a_larger_base64(self, secret: str, before: bytes, after: bytes):
        assert contains_secret(base64.b64encode(before + secret.encode() + after), [secret])

    @given(secret=SECRETS)
    def test_data_without_the_secret_passes(self, secret: str):
        assert not contains_secret(json.dumps({"count": 3, "ids": ["a", "b"]}).encode(), [secret])

    def test_an_empty_secret_is_ignored(self):
        assert not contains_secret(b"anything", [""])
