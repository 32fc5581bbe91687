"""Mistakes of the first hour: the answer names the repair."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.client.conftest import Command
from tests.unit.client.scripted_evergrant import (
    LINK,
    ScriptedEvergrant,
    ScriptedResponse,
    connection,
    consent_required,
    problem,
)

ROOT = Path(__file__).parents[4]
PENDING = ScriptedResponse(201, connection(state="pending_consent", connect_url=LINK))
NO_SUCH = problem(404, "BadRequest", "not_found", detail="There is no such thing.")


@pytest.mark.parametrize(
    ("url", "repair"),
    [
        ("127.0.0.1:8480", "http://127.0.0.1:8480"),
        ("http://127.0.0.1:8480/v1/", "Leave out /v1"),
        ("http://me:pw-canary@127.0.0.1:8480", "Set EVERGRANT_URL"),
        ("http://crm.example", "https"),
    ],
)
def test_a_wrong_url_is_refused_before_anything_is_sent(command: Command, url: str, repair: str):
    ended = command("apps", "ls", "--url", url)
    assert (ended.status, ended.out, ended.err.count("\n"), repair in ended.err) == (1, "", 1, True)
    assert "pw-canary" not in ended.err


def test_https_to_a_server_without_tls_is_told_apart(command: Command, evergrant: ScriptedEvergrant):
    ended = command("apps", "ls", "--url", evergrant.url.replace("http:", "https:"))
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert ended.err.startswith("evergrant: tls_failed: ")
    assert "http://" in ended.err


def test_what_is_not_there_is_named(command: Command, evergrant: ScriptedEvergrant):
    evergrant.script("POST /v1/connections", NO_SUCH)
    evergrant.script("GET /v1/apps/no%20such", NO_SUCH)
    connect = command("connect", "crn", "alice").err
    assert connect.startswith(
        "evergrant: not_found: There is no such thing: integration crn, subject alice ("
    )
    assert "There is no such thing: app no such (" in command("apps", "get", "no such").err


def test_a_refused_key_says_where_it_may_come_from(command: Command, evergrant: ScriptedEvergrant):
    evergrant.script("GET /v1/apps", problem(401, "BadRequest", "unauthenticated", repair="Send a header."))
    told = command("apps", "ls").err
    assert "EVERGRANT_API_KEY_FILE" in told
    assert "--api-key-file" in told


def test_a_field_is_named_once(command: Command, evergrant: ScriptedEvergrant):
    refused = {"detail": "A secret is needed.", "field": "client_secret", "repair": "Correct it."}
    evergrant.script("PUT /v1/integrations/crm", problem(400, "BadRequest", "invalid_request", **refused))
    told = command("integrations", "put", "crm", "--provider", "github", "--client-id", "c").err
    assert told == "evergrant: invalid_request: client_secret: A secret is needed. (Correct it.)\n"
    assert command("apps", "key", "web", "--days", "0").status == 2


def test_the_settings_of_the_folder_are_remembered(
    command: Command, evergrant: ScriptedEvergrant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EVERGRANT_API_KEY")
    (tmp_path / "evergrant.env").touch()
    assert "unset EVERGRANT_URL" in command("apps", "ls").err
    assert evergrant.requests == []


def test_a_missing_consent_ends_with_a_line_to_copy(
    command: Command, evergrant: ScriptedEvergrant, tmp_path: Path
):
    (tmp_path / "app.key").write_text("evg_app")
    key = ("--api-key-file", str(tmp_path / "app.key"))
    evergrant.script("POST /v1/lease", consent_required())
    told = command("token", "crm", "alice", *key).err
    assert f"evergrant connect crm alice --open --wait --api-key-file {key[1]};" in told


@pytest.mark.parametrize("end", ["timeout", "refused", "interrupted"])
def test_a_consent_that_fails_elsewhere_says_where_to_look(
    command: Command, evergrant: ScriptedEvergrant, end: str
):
    evergrant.script("POST /v1/connections", PENDING)
    rejected = problem(424, "ClientMisconfigured", "client_rejected")
    evergrant.script("GET /v1/connections/con_1", rejected if end == "refused" else PENDING)
    if end == "interrupted":
        env = {"PATH": os.environ["PATH"], "EVERGRANT_URL": evergrant.url, "EVERGRANT_API_KEY": "evg_canary"}
        env["PYTHONPATH"] = str(ROOT / "clients/python/src")
        words = [str(Path(sys.executable).parent / "evergrant"), "connect", "crm", "alice", "--wait"]
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
        child = subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        signal.signal(signal.SIGINT, before)
        while not evergrant.count("GET /v1/connections/con_1"):  # it waits for the subject
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        told = child.communicate()[1]
        assert child.returncode == 130
    else:
        told = command("connect", "crm", "alice", "--wait", "--timeout", "0.1").err
    assert "evergrant connections get con_1\n" in told
    assert "evergrant integrations redirect-uri crm\n" in told
    assert "Traceback" not in told


def test_a_program_that_can_not_be_written_is_refused_first(command: Command, evergrant: ScriptedEvergrant):
    ended = command("init", "--provider", "github", "--out", "/nonexistent/lease.py")
    assert (ended.status, ended.err.count("\n"), "--out" in ended.err) == (1, 1, True)
    assert evergrant.requests == []


def test_a_file_that_the_system_refuses_is_one_line(command: Command, tmp_path: Path):
    ended = command("apps", "credentials", "put", "web", "main", "--key", str(tmp_path))
    assert (ended.status, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert str(tmp_path) in ended.err


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("connections revoke con_1", "--reason is missing (See evergrant connections revoke --help.)"),
        ("connect", "INTEGRATION is missing (See evergrant connect --help.)"),
    ],
)
def test_wrong_usage_names_what_is_missing(command: Command, typed: str, told: str):
    ended = command(*typed.split())
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert ended.err.endswith(f"{told}\n")


def test_a_secret_as_an_argument_is_not_repeated(command: Command):
    ended = command("integrations", "put", "crm", "--provider", "github", "--client-secret", "canary-secret")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "--client-secret-file" in ended.err
    assert "canary-secret" not in ended.err
