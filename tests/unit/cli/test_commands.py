"""How commands end: a reconcile that found drift, an interrupt, a setting that can't be read."""

import asyncio
import os
import re
import signal
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cyclopts import UnknownCommandError

from evergrant_server.cli.app import app as server_app
from evergrant_server.cli.app import usage_message
from evergrant_server.cli.operate import print_report
from evergrant_server.cli.process import settings_environment
from evergrant_server.core.errors import ErrorCode
from evergrant_server.settings import BadSettings, load_settings
from evergrant_server.settings.types import DURATION_FORMS
from evergrant_server.temporal_link.reconcile import Named, ReconcileCounts
from examples.demo.interruption import INTERRUPTED, run_interruptible
from tests.fakes.failures import fails

DAYS, WAIT = "EVERGRANT_EXPIRY_ANNOUNCE_DAYS", "EVERGRANT_LEASE_WAIT"


@pytest.mark.parametrize("text", ["3600", " 3600 ", "3600.0", "3600s", "60m", "1h", "1 H", "PT1H"])
def test_a_duration_is_read_in_every_form_that_the_settings_page_names(
    text: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(WAIT, text)
    assert load_settings().lease_wait == timedelta(hours=1)
    _, given, _ = server_app.parse_args(["reconcile", "--restart-older-than", text], exit_on_error=False)
    assert given.arguments["restart_older_than"] == timedelta(hours=1)


@pytest.mark.parametrize("text", ["an hour", "-5", "0", "PT0S", "1h30", "9" * 400, "1e3", "", "٣", "nan"])
def test_a_refused_duration_is_told_the_accepted_forms(text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(WAIT, text)
    with pytest.raises(BadSettings, match=rf"{WAIT}: .*{re.escape(DURATION_FORMS)}$"):
        load_settings()


@pytest.mark.parametrize(
    ("more", "code", "named"),
    [
        ({}, ErrorCode.TEMPORAL_UNAVAILABLE, "con_2: its workflow doesn't"),
        ({}, ErrorCode.TEMPORAL_UNAVAILABLE, "and 1000 more after con_2"),
        ({"workers_answered": False}, ErrorCode.TEMPORAL_UNAVAILABLE, "start a worker and run"),
        ({"store_behind": Named(1, ("con_3",))}, ErrorCode.STORE_BEHIND, "con_1: its workflow"),
        (
            {"unanswered": Named(), "unreadable": Named(1, (("con_4", "flow"),))},
            ErrorCode.INTERNAL,
            "con_4: skipped, flow",
        ),
    ],
)
def test_what_a_pass_could_not_check_is_named_and_the_command_fails(
    more: dict[str, Any], code: ErrorCode, named: str, capsys: pytest.CaptureFixture[str]
):
    with fails(code):
        print_report(
            ReconcileCounts(**{"unanswered": Named(1_002, ("con_1", "con_2")), **more}), restarting=False
        )
    assert named in capsys.readouterr().out


def test_a_pass_that_heard_from_everybody_is_no_failure(capsys: pytest.CaptureFixture[str]):
    print_report(ReconcileCounts(live=3, started=1), restarting=False)
    assert capsys.readouterr().out == "3 live connections, 1 workflows started\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_further_signals_do_not_interrupt_the_clean_up(number: signal.Signals) -> None:
    cleaned_up: list[bool] = []

    async def work() -> int:
        os.kill(os.getpid(), number)
        try:
            await asyncio.sleep(10)
        finally:
            for _ in range(2):
                os.kill(os.getpid(), number)
                await asyncio.sleep(0.01)
            cleaned_up.append(True)
        return 0

    assert run_interruptible(work()) == INTERRUPTED
    assert cleaned_up == [True]


@pytest.mark.parametrize(
    ("text", "days"), [("7, 30", (30, 7)), ("1,1,14", (14, 1)), ("0", ()), (None, (14, 3, 1))]
)
def test_days_are_read_in_any_order(text: str | None, days: tuple[int, ...], monkeypatch: pytest.MonkeyPatch):
    if text is not None:
        monkeypatch.setenv(DAYS, text)
    assert load_settings().expiry_announce_days == days


@pytest.mark.parametrize(("text", "seconds"), [("5", 5), ("0.5", 0.5), ("PT5S", 5)])
def test_a_duration_is_seconds_or_iso_8601(text: str, seconds: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(WAIT, text)
    assert load_settings().lease_wait.total_seconds() == seconds


@pytest.mark.parametrize(
    ("name", "text"), [*product([DAYS], ["soon", "-1", "366", "1.5"]), *product([WAIT], ["0", "soon", "-1"])]
)
def test_an_invalid_value_names_its_setting(name: str, text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, text)
    with pytest.raises(BadSettings, match=name):
        load_settings()


def test_a_command_of_the_client_is_named():
    with pytest.raises(UnknownCommandError) as unknown:
        server_app(["apps", "ls"], print_error=False, exit_on_error=False)
    assert "\n  If it is a command for apps, integrations or connections: evergrant apps\n" in usage_message(
        unknown.value
    )


PASSWORD = "p@ss/word:canary"


class TestTheEnvironmentOfChildProcesses:
    """It is readable for every process of the user, and inherited by every further child."""

    @pytest.mark.parametrize(
        "url", ["postgresql://evergrant@db:5432/evergrant", "postgresql://u:in-the-url@/x?host=/run"]
    )
    def test_a_password_from_a_file_stays_in_the_file(
        self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        (tmp_path / "password").write_text(PASSWORD)
        monkeypatch.chdir(tmp_path)
        settings = load_settings(database_url=url, database_password_file=Path("password"))
        environment = settings_environment(settings)
        assert not re.search("canary|in-the-url", " ".join(environment.values()))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir("/")
        child = load_settings()
        assert child.database_url == settings.database_url
        assert quote(PASSWORD, safe="") in child.database_url

    def test_a_url_of_the_settings_file_stays_in_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        (tmp_path / "evergrant.env").write_text("EVERGRANT_DATABASE_URL=postgresql://u:canary@db/evergrant\n")
        monkeypatch.chdir(tmp_path)
        settings = load_settings(port=8481)
        environment = settings_environment(settings)
        assert "canary" not in " ".join(environment.values())
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert load_settings() == settings

    def test_a_url_that_only_a_flag_names_is_passed_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.chdir(tmp_path)
        settings = load_settings(database_url="postgresql://u:flag@db/evergrant")
        for name, value in settings_environment(settings).items():
            monkeypatch.setenv(name, value)
        assert load_settings().database_url == settings.database_url
