"""What a terminal shows: tables that fit, times by now, colours unless NO_COLOR; and help with an example."""

import io
import re
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
import yaml
from cyclopts import App
from evergrant.cli.examples import EXAMPLES, command_line
from evergrant.cli.main import build_app
from evergrant.cli.tables import relative

from tests.unit.client.conftest import Command
from tests.unit.client.scripted_evergrant import ScriptedEvergrant, connection, page

NOW = datetime(2030, 1, 1, tzinfo=UTC)
ID = "con_" + "0123456789abcdefghjkmn"
LOST = {"state": "needs_reauth", "reason": "grant_rejected", "repairer": "subject"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def seen(command: Command, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What a command shows on a terminal of 80 columns."""
    for name, value in {"COLUMNS": "80", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)

    def run(*arguments: str) -> str:
        terminal = Terminal()
        monkeypatch.setattr("sys.stdout", terminal)
        command(*arguments)
        return terminal.getvalue()

    return run


def plain(shown: str) -> list[str]:
    """The lines without escape sequences."""
    return re.sub(r"\x1b\[[\d;]*m", "", shown).splitlines()


def test_connections_fit_80_columns_with_reason_and_who_acts(
    seen: Callable[..., str], evergrant: ScriptedEvergrant, monkeypatch: pytest.MonkeyPatch
):
    soon = (datetime.now(UTC) + timedelta(minutes=58, seconds=30)).isoformat()
    evil = connection(id=ID, subject="bob\n\x1b[2J", label="default", expires_at=soon)
    evergrant.script("GET /v1/connections", page(evil, connection(id=ID, label="second", **LOST)))
    coloured = seen("connections", "ls")
    assert "\x1b[31mneeds_reauth" in coloured
    assert "\x1b[2J" not in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[31m" not in seen("connections", "ls")
    lines = plain(coloured)
    assert max(map(len, lines)) <= 80
    header, first, second, *below = (line.split() for line in lines)
    assert header == ["ID", "INTEGRATION", "SUBJECT", "STATE", "EXPIRES"]
    assert (first[0], first[-2:]) == (ID, ["in", "58m"])
    assert second[0] == ID
    assert below == [["second", "grant_rejected"], ["subject"]]


def test_a_list_that_is_too_wide_has_a_line_a_member(seen: Callable[..., str], evergrant: ScriptedEvergrant):
    long = "alice-" + "x" * 60
    evergrant.script("GET /v1/connections", page(connection(id=ID, subject=long)))
    lines = plain(seen("connections", "ls"))
    assert [line.split() for line in lines if long in line] == [["subject", long]]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "now"), (59, "in 59s"), (3599, "in 59m"), (-7200, "2h ago"), (86400 * 90, "in 90d")],
)
def test_a_time_is_told_in_its_largest_unit(seconds: int, text: str):
    assert relative(NOW + timedelta(seconds=seconds), NOW) == text


def test_yaml_has_every_member(command: Command, evergrant: ScriptedEvergrant):
    evergrant.script("GET /v1/connections", page(connection(scopes=["a", "b"])))
    (shown,) = yaml.safe_load(command("connections", "ls", "-o", "yaml").out)
    assert (shown["scopes"], shown["state"], shown["expires_at"]) == (["a", "b"], "active", None)


def leaves(app: App, path: tuple[str, ...] = ()) -> Iterator[tuple[str, App]]:
    for name, found in app.resolved_commands().items():
        if not name.startswith("-"):
            inner = list(leaves(found, (*path, name)))
            yield from inner or [(" ".join((*path, name)), found)]


def test_every_command_has_an_example_that_it_accepts():
    app = build_app()
    assert [name for name, found in leaves(app) if not found.help_epilogue] == []
    for example in EXAMPLES:
        app.parse_args(command_line(example), exit_on_error=False, print_error=False)


def test_a_shell_completes_commands(command: Command):
    ask = "COMP_WORDS=(evergrant connections re); COMP_CWORD=2; _evergrant; echo ${COMPREPLY[@]}"
    script = f"{command('completion', 'bash').out}\n{ask}"
    ended = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True)
    assert {"refresh", "reauthorize", "revoke"} <= set(ended.stdout.split())
