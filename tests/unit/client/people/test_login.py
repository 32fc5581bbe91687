"""`evergrant login`: loopback, PKCE and state (RFC 8252), and the file that keeps the session."""

import json
import stat
import threading
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
import pytest
from evergrant.api.models import AdminLogin, PersonSession
from evergrant.cli.commands import people as login_module
from evergrant.cli.commands.people import code_with_state
from evergrant.cli.main import main
from evergrant.identity.session_file import session_file
from evergrant.models import challenge_of

from tests.unit.client.conftest import Command
from tests.unit.client.scripted_evergrant import ScriptedEvergrant, ScriptedResponse, example, page, problem

TOKEN = "evg_ses_" + "t" * 43
MADE = {
    "token": TOKEN,
    "role": "auditor",
    "name": "ann@corp.example",
    "person": "psn_0000000000000000000000",
    "tenant": "acme",
    "expires_at": "2030-01-02T03:04:05Z",
}
OWN, EXCHANGE = "/v1/sessions/current", "POST /login/command"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evergrant: ScriptedEvergrant) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("EVERGRANT_URL", evergrant.url)
    for name in ("EVERGRANT_API_KEY", "EVERGRANT_API_KEY_FILE", "EVERGRANT_APP_ID"):
        monkeypatch.delenv(name, raising=False)
    evergrant.script("GET /login", ScriptedResponse(200, "the page", content_type="text/html"))
    return tmp_path


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(words)
    return int(ended.value.code or 0)


def a_browser(monkeypatch: pytest.MonkeyPatch, *first: dict[str, str]) -> dict[str, str]:
    """Stands in for the browser, the API and the issuer: comes back with a code. `first` come before."""
    asked: dict[str, str] = {}

    def opened(address: str) -> None:
        asked.update(parse_qsl(urlsplit(address).query), page=address.partition("?")[0])
        back = f"http://127.0.0.1:{asked['port']}/"

        def come_back() -> None:
            for query in (*first, {"code": "the-code", "state": asked["state"]}):
                httpx2.get(back, params=query, trust_env=False)

        threading.Thread(target=come_back).start()

    monkeypatch.setattr(login_module.webbrowser, "open", opened)
    return asked


def test_rfc8252_a_login_comes_back_on_loopback_and_its_session_is_kept_and_used(
    home: Path,
    evergrant: ScriptedEvergrant,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    stray = {"code": "of-another", "state": "x" * 43}, {"code": "without-state"}
    asked = a_browser(monkeypatch, *stray)
    evergrant.script(EXCHANGE, ScriptedResponse(200, MADE))
    assert run("login", "--again") == 0
    sent = evergrant.requests[-1].body
    assert (asked["page"], asked["step_up"]) == (f"{evergrant.url}/login", "true")
    assert (sent["code"], challenge_of(sent["verifier"])) == ("the-code", asked["challenge"])
    assert len(asked["state"]) == 43
    shown = capsys.readouterr()
    assert "auditor" in shown.out
    assert TOKEN not in shown.out + shown.err
    path = session_file()
    assert (path.parent.parent, stat.S_IMODE(path.stat().st_mode)) == (home, 0o600)

    evergrant.script("GET /v1/apps", page())
    assert run("apps", "ls") == 0
    assert evergrant.requests[-1].headers["authorization"] == f"Bearer {TOKEN}"
    monkeypatch.setenv("EVERGRANT_API_KEY", "evg_key_of_an_app")
    evergrant.script("GET /v1/apps", page())
    assert run("apps", "ls") == 0
    assert evergrant.requests[-1].headers["authorization"] == "Bearer evg_key_of_an_app"
    monkeypatch.delenv("EVERGRANT_API_KEY")

    evergrant.script(f"DELETE {OWN}", problem(401, "BadRequest", "unauthenticated"))
    assert run("logout") == 0
    assert json.loads(path.read_text()) == {}


def test_a_code_that_is_refused_keeps_nothing(
    home: Path,
    evergrant: ScriptedEvergrant,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    a_browser(monkeypatch)
    evergrant.script(EXCHANGE, problem(400, "BadRequest", "callback_invalid"))
    assert run("login") == 1
    assert "callback_invalid" in capsys.readouterr().err
    assert not session_file().exists()


def test_no_browser_comes_back(home: Path, evergrant: ScriptedEvergrant, capsys: pytest.CaptureFixture[str]):
    assert run("login", "--no-browser", "--wait", "0.01") == 1
    assert "login_timeout" in capsys.readouterr().err
    assert evergrant.count("GET /login") == len(evergrant.requests) == 1


def test_where_no_people_log_in_the_command_says_so_at_once(
    home: Path, evergrant: ScriptedEvergrant, capsys: pytest.CaptureFixture[str]
):
    evergrant.script("GET /login", ScriptedResponse(404, "no page", content_type="text/html"))
    assert run("login", "--no-browser") == 1
    told = capsys.readouterr().err
    assert told.startswith("evergrant: login_not_set_up: ")
    assert told.count("\n") == 1


def test_a_file_that_other_users_can_read_is_refused(
    home: Path, evergrant: ScriptedEvergrant, capsys: pytest.CaptureFixture[str]
):
    path = session_file()
    path.parent.mkdir()
    path.write_text(json.dumps({evergrant.url: TOKEN}))
    path.chmod(0o644)
    assert run("apps", "ls") == 1
    shown = capsys.readouterr().err
    assert "session_file_open" in shown
    assert TOKEN not in shown


@pytest.mark.parametrize("query", ["", "code=c", "state=s", "code=c&state=t", "state=s&code="])
def test_only_a_return_with_the_own_state_counts(query: str):
    assert code_with_state(f"/?{query}", "s") is None
    assert code_with_state("/?code=c&state=s", "s") == "c"


ADMIN_LOGIN = example(AdminLogin, issuer="https://login.example", roles={})
SESSION = example(PersonSession, person="psn_1")
PUT = "people put staff --admin a --auditor b --auditor c --story-reader d --scope groups"
PEOPLE = {
    "integration": "staff",
    "groups_claim": "groups",
    "roles": {"tenant_admin": ["a"], "auditor": ["b", "c"], "story_reader": ["d"]},
    "scopes": ["groups"],
}


@pytest.mark.parametrize(
    ("line", "route", "body", "answer", "shown"),
    [
        (PUT, "PUT admin-login", PEOPLE, ADMIN_LOGIN, "https://login.example"),
        ("people show", "GET admin-login", None, ADMIN_LOGIN, "https://login.example"),
        ("people rm", "DELETE admin-login", None, None, ""),
        ("people sessions", "GET sessions", None, [SESSION], "psn_1"),
        ("people end ses_1", "DELETE sessions/ses_1", None, None, ""),
        ("whoami", "GET sessions/current", None, SESSION, "psn_1"),
    ],
)
def test_a_command_is_one_call_and_shows_its_result(
    command: Command, evergrant: ScriptedEvergrant, line: str, route: str, body: Any, answer: Any, shown: str
):
    path = route.replace(" ", " /v1/")
    evergrant.script(path, page(*answer) if isinstance(answer, list) else ScriptedResponse(200, answer))
    ended = command(*line.split())
    assert (ended.status, ended.err) == (0, "")
    assert shown in ended.out
    assert evergrant.requests[-1].body == body


def test_a_login_without_a_role_is_refused_before_it_is_sent(command: Command, evergrant: ScriptedEvergrant):
    assert command("people", "put", "staff").status == 1
    assert evergrant.requests == []
