"""A lease can't be shown, pickled, copied or written as JSON; settings don't leak the key."""

import copy
import dataclasses
import json
import logging
import pickle
import pprint
import traceback
from datetime import UTC, datetime
from io import StringIO
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
from evergrant import BadRequest, Evergrant, Lease, LeaseLeak
from evergrant.target import ServerAddress
from pydantic_core import PydanticSerializationError, to_json
from rich.console import Console
from rich.pretty import Pretty
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.converter import DataConverter

from tests.unit.client.conftest import Caller
from tests.unit.client.scripted_evergrant import TOKEN, ScriptedEvergrant, lease


@pytest.fixture
def leased() -> Lease:
    return Lease(
        TOKEN,
        token_type="Bearer",
        expires_at=datetime(2030, 1, 1, tzinfo=UTC),
        scopes=(),
        generation=1,
        connection_id="con_1",
    )


def test_no_way_of_printing_shows_the_token(leased: Lease):
    shown = f"{leased} {leased!r} {leased!s} {[leased]}{leased:}"
    assert TOKEN not in shown
    assert shown.count("***") == 5


def test_pretty_printers_and_logging_show_no_token(leased: Lease, caplog: pytest.LogCaptureFixture):
    logging.getLogger("user").warning("%s %r", leased, {"lease": leased})
    pretty = Console(record=True, width=200, file=StringIO())
    pretty.print(leased, [leased])
    pretty.print(Pretty({"lease": leased}, expand_all=True))
    said = pprint.pformat({"lease": leased}) + f"{leased!a}" + caplog.text + pretty.export_text()
    assert TOKEN not in said
    assert said.count("***") >= 6


def test_it_does_not_cross_to_another_process(leased: Lease):
    with pytest.raises(LeaseLeak):
        ForkingPickler.dumps({"lease": leased})


def test_a_traceback_with_locals_shows_no_token(leased: Lease):
    def fails(lease: Lease) -> None:
        raise ValueError("went wrong")

    try:
        fails(leased)
    except ValueError as error:
        told = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "Lease(access_token=***" in told
    assert TOKEN not in told


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_is_refused(leased: Lease, protocol: int):
    with pytest.raises(LeaseLeak):
        pickle.dumps(leased, protocol)


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda it: it.__getstate__()])
def test_copying_is_refused(leased: Lease, way):
    with pytest.raises(LeaseLeak):
        way(leased)


@pytest.mark.parametrize("way", [json.dumps, vars, dataclasses.asdict, dict, list])
def test_it_can_not_be_taken_apart_by_accident(leased: Lease, way):
    with pytest.raises(TypeError):
        way(leased)


def test_pydantic_refuses_it(leased: Lease):
    with pytest.raises(PydanticSerializationError):
        to_json({"lease": leased})


@pytest.mark.parametrize("converter", [DataConverter.default, pydantic_data_converter])
def test_temporals_converters_refuse_it(leased: Lease, converter: DataConverter):
    with pytest.raises((TypeError, PydanticSerializationError)):
        converter.payload_converter.to_payloads([{"lease": leased}])


def test_it_can_not_be_changed(leased: Lease):
    with pytest.raises(AttributeError):
        leased.generation = 2  # type: ignore[misc]  # what is tested
    with pytest.raises(AttributeError):
        del leased.access_token


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    """The HTTP libraries as a user has them, whatever this process has silenced for the server."""
    for name, logger in logging.Logger.manager.loggerDict.items():
        if name.startswith(("httpx2", "httpcore2")) and isinstance(logger, logging.Logger):
            monkeypatch.setattr(logger, "filters", [])
            monkeypatch.setattr(logger, "level", logging.NOTSET)
    logging.Logger.manager._clear_cache()  # type: ignore[attr-defined]  # levels are remembered


async def test_logs_at_debug_hold_neither_key_nor_token(
    caller: Caller, evergrant: ScriptedEvergrant, caplog: pytest.LogCaptureFixture, talkative: None
):
    evergrant.script("POST /v1/lease", lease())
    with caplog.at_level(logging.DEBUG):
        await caller.call("lease", "crm", "alice")
    assert "/v1/lease" in caplog.text
    assert TOKEN not in caplog.text
    assert "evg_key_canary" not in caplog.text


class TestTarget:
    def test_arguments_win_over_the_environment(self):
        env = {"EVERGRANT_URL": "https://a.example/", "EVERGRANT_API_KEY": "env"}
        assert ServerAddress.from_settings(environ=env) == ServerAddress("https://a.example", "env")
        assert ServerAddress.from_settings("https://b.example", "arg", environ=env) == ServerAddress(
            "https://b.example", "arg"
        )

    def test_a_key_file_is_read_without_its_line_end(self, tmp_path: Path):
        file = tmp_path / "key"
        file.write_text("evg_from_file\n")
        env = {"EVERGRANT_URL": "http://localhost:8080", "EVERGRANT_API_KEY_FILE": str(file)}
        assert ServerAddress.from_settings(environ=env).api_key == "evg_from_file"

    def test_the_key_is_not_shown(self):
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
    def test_plain_http_stays_on_this_machine(self, url: str):
        assert ServerAddress.from_settings(url, "key", environ={}).url == url

    def test_plain_http_elsewhere_has_to_be_asked_for(self):
        ServerAddress.from_settings("http://a.example", "key", allow_plain_http=True, environ={})
        ServerAddress.from_settings("http://a.example", "key", environ={"EVERGRANT_ALLOW_PLAIN_HTTP": "1"})

    def test_the_client_reads_the_environment(self, monkeypatch: pytest.MonkeyPatch):
        with pytest.raises(BadRequest, match="url_missing"):
            Evergrant()
        monkeypatch.setenv("EVERGRANT_URL", "https://a.example")
        monkeypatch.setenv("EVERGRANT_API_KEY", "key")
        Evergrant().close()
