"""The first hour: `evergrant.env`, `init` and the commands behind it; no secret in arguments or on screen."""

import json
import os
import pty
import stat
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from evergrant.api.models import ApiKey, Permit

from tests.fakes.ports import free_port
from tests.unit.client.cli.conftest import FLAGS, NO_SUCH, sent
from tests.unit.client.conftest import Command
from tests.unit.client.scripted_evergrant import (
    SECRET,
    TOKEN,
    ScriptedEvergrant,
    ScriptedResponse,
    an_integration,
    consent_required,
    example,
    lease,
    page,
    problem,
)

ROOT = Path(__file__).parents[4]
URI = "https://e/oauth/callback/int_1"
pytestmark = pytest.mark.usefixtures("here")


def test_init_makes_all_that_a_first_lease_needs(command: Command, server: ScriptedEvergrant, here: Path):
    (here / "secret").write_text(f"{SECRET}\n")
    ended = command("init", *FLAGS, "--client-secret-file", "secret", "--scope", "repo")
    assert (ended.status, ended.out) == (0, ""), ended.err
    assert f"\n  {URI}\n" in ended.err
    assert "evergrant connect github alice --open --wait --api-key-file first-app.key\n" in ended.err
    reserved, put, app, permit, _ = (body for _, body in sent(server))
    assert reserved == {"provider": "github"}
    client = {"client_id": "c-1", "client_secret": SECRET}
    assert put == {"provider": "github", **client, "default_scopes": ["repo"]}
    assert app == {"return_to": ["http://127.0.0.1/"]}
    assert (permit["subjects"], permit["actions"]) == (["alice"], ["token", "connect"])
    key = here / "first-app.key"
    assert (key.read_text(), stat.S_IMODE(key.stat().st_mode)) == (f"{SECRET}\n", 0o600)
    assert SECRET not in ended.err + (here / "lease.py").read_text()

    again = command("init", *FLAGS, "--client-secret-file", "secret")
    assert (again.status, server.count("POST /v1/apps/first-app/keys")) == (0, 1)
    for changed in ("mine\n", (here / "lease.py").read_text() + "print('mine')\n"):
        (here / "lease.py").write_text(changed)
        refused = command("init", *FLAGS, "--client-secret-file", "secret")
        assert (refused.status, refused.err.count("\n"), "--out" in refused.err) == (1, 1, True)
        assert (here / "lease.py").read_text() == changed


def test_the_written_program_runs(command: Command, server: ScriptedEvergrant, here: Path):
    (here / "secret").write_text(SECRET)
    command("init", *FLAGS, "--client-secret-file", "secret")
    server.script(
        "POST /v1/lease",
        lease(),
        consent_required(),
        problem(403, "Denied", "not_permitted", repair="Give a permit."),
    )
    server.script("GET /me", ScriptedResponse(200, {"name": "alice"}))
    env = {"PATH": "", "PYTHONPATH": str(ROOT / "clients/python/src")}
    run = [sys.executable, "lease.py"]
    first = subprocess.run([*run, f"{server.url}/me"], env=env, capture_output=True, text=True)
    assert (first.returncode, first.stderr) == (0, "")
    assert "valid until 2030-01-02 03:04:05" in first.stdout
    assert '200 {"name": "alice"}' in first.stdout
    assert server.requests[-1].headers["authorization"] == f"Bearer {TOKEN}"
    unconnected = subprocess.run(run, env=env, capture_output=True, text=True)
    assert unconnected.stderr.endswith("an admin sees why: evergrant connections get con_1\n")
    second = subprocess.run(run, env=env, capture_output=True, text=True)
    assert (second.returncode, second.stdout) == (1, "")
    assert second.stderr == "not_permitted: the reason (Give a permit.)\n"


def test_init_asks_five_questions_and_hides_the_secret(server: ScriptedEvergrant, here: Path):
    github = {"name": "github", "default_scopes": ["read:user"], "docs_url": "https://docs.example"}
    server.script("GET /v1/providers", page(github))
    env = {"PATH": os.environ["PATH"], "EVERGRANT_URL": server.url, "EVERGRANT_API_KEY": "evg_canary"}
    env["PYTHONPATH"] = str(ROOT / "clients/python/src")
    ours, theirs = pty.openpty()
    executable = str(Path(sys.executable).parent / "evergrant")
    child = subprocess.Popen([executable, "init"], env=env, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = ""
    for question, answer in (
        ("Provider", "github"),
        ("Client id", "c-1"),
        ("Client secret", SECRET),
        ("Scopes to request, with spaces between; https://docs.example lists them [read:user]", "repo, gist"),
        ("Your name", "alice"),
    ):
        while question not in shown.rpartition("\n")[2]:
            shown += os.read(ours, 4096).decode()
        os.write(ours, f"{answer}\n".encode())
    while "lease.py\r\n" not in shown.partition("Next:")[2]:
        shown += os.read(ours, 4096).decode()
    assert child.wait() == 0
    os.close(ours)
    assert SECRET not in shown
    put = sent(server)[1][1]
    assert (put["client_secret"], put["default_scopes"]) == (SECRET, ["repo", "gist"])
    assert (here / "lease.py").exists()


@pytest.mark.parametrize("method", ["by hand", "dynamic"])
def test_openid_is_requested_of_a_server_that_lists_it(
    command: Command, server: ScriptedEvergrant, here: Path, method: str
):
    """A request without a scope is refused by many servers, in words that lead nowhere."""
    route, url = "/v1/integrations/server", "https://login.example"
    registered = {"registration": "dynamic"} if method == "dynamic" else {"registration": None}
    waiting = an_integration(name="server", client_id="", state="failed", issuer=url, registration=None)
    ready = {"name": "server", "client_id": "c-1", "state": "ready", "issuer": url, "provider": "generic"}
    ready |= {"supported_scopes": ["openid", "email"], "default_scopes": [], **registered}
    server.script(f"GET {route}", NO_SUCH, ScriptedResponse(200, an_integration(**ready)))
    server.script(
        f"PUT {route}", ScriptedResponse(201, waiting), ScriptedResponse(200, an_integration(**ready))
    )
    server.script("GET /v1/apps/first-app/permits/server", NO_SUCH)
    server.script("PUT /v1/apps/first-app/permits/server", ScriptedResponse(201, example(Permit)))
    client = ("--client-id", "") if method == "dynamic" else ("--client-id", "c-1")
    (here / "secret").write_text(SECRET)
    flags = ("--provider", url, *client, "--client-secret-file", "secret", "--subject", "alice")
    ended = command("init", *flags)
    assert (ended.status, "Requested is openid" in ended.err) == (0, True), ended.err
    put = [body for path, body in sent(server) if path == f"PUT {route}"][-1]
    assert (put["default_scopes"], put["issuer"]) == (["openid"], url)
    assert (put.get("client_id"), put.get("registration")) == (
        (None, "dynamic") if method == "dynamic" else ("c-1", None)
    )


@pytest.mark.parametrize("missing", ["--provider", "--client-id", "--subject"])
def test_without_a_terminal_a_flag_is_named(command: Command, server: ScriptedEvergrant, missing: str):
    at = FLAGS.index(missing)
    ended = command("init", *FLAGS[:at], *FLAGS[at + 2 :], "--client-secret-file", os.devnull)
    assert (ended.status, ended.err.splitlines()[-1].startswith("evergrant: ")) == (1, True)
    assert f"{missing} is missing" in ended.err


@pytest.mark.parametrize(("typed", "own"), [("https://a", "https://a/"), ("https://a/x/", "https://a/x")])
def test_a_final_slash_of_the_issuer_is_the_servers(
    command: Command, evergrant: ScriptedEvergrant, typed: str, own: str
):
    """Both URLs have one metadata document; what differs by more is another server's, and refused."""
    route, flags = "/v1/integrations/server", ("--client-id", "", "--subject", "alice")
    waiting = an_integration(name="server", client_id="", state="discovering")
    another, slash = (
        problem(
            424,
            "ClientMisconfigured",
            "discovery_failed",
            detail=f"{typed}: the document names another issuer: {it}",
        )
        for it in ("https://b/", own)
    )
    evergrant.script(f"GET {route}", ScriptedResponse(200, waiting))
    evergrant.script(f"PUT {route}", another)
    refused = command("init", "--provider", typed, *flags)
    assert (refused.status, refused.err.splitlines()[-1].startswith("evergrant: discovery_failed")) == (
        1,
        True,
    )
    evergrant.script(f"PUT {route}", slash, problem(403, "Denied", "not_permitted"))
    assert f"own name is {own}:" in command("init", "--provider", typed, *flags).err
    puts = [body.get("issuer", body.get("params")) for _, body in sent(evergrant)]
    assert puts == [typed, {"url": typed}, typed, own]
    ready = an_integration(name="server", client_id="c", state="ready", issuer=own, registration="dynamic")
    evergrant.script(f"GET {route}", ScriptedResponse(200, ready))
    assert "already_exists" not in command("init", "--provider", typed, "--subject", "alice").err


def test_the_url_of_an_mcp_server_is_enough(command: Command, server: ScriptedEvergrant):
    """What is no issuer may be a protected resource, whose metadata names the issuer (RFC 9728)."""
    typed, route = "http://127.0.0.1:9/mcp", "/v1/integrations/server"
    none = problem(424, "ClientMisconfigured", "discovery_failed")
    server.script(f"GET {route}", NO_SUCH)
    server.script("GET /v1/apps/first-app/permits/server", NO_SUCH)
    server.script("PUT /v1/apps/first-app/permits/server", ScriptedResponse(201, example(Permit)))
    flags = ("--provider", typed, "--client-id", "", "--subject", "alice", "--scope", "mcp:tools")
    server.script(f"PUT {route}", none, problem(424, "ClientMisconfigured", "egress_refused"))
    assert "egress_refused" in command("init", *flags).err, "of the issuer that it names"
    ready = {"name": "server", "state": "ready", "client_id": "c", "registration": "automatic"}
    ready |= {"provider": "mcp", "params": {"url": typed}, "issuer": None, "default_scopes": ["mcp:tools"]}
    server.script(f"PUT {route}", none, ScriptedResponse(200, an_integration(**ready)))
    server.script(f"GET {route}", NO_SUCH, ScriptedResponse(200, an_integration(**ready)))
    ended = command("init", *flags)
    assert (ended.status, "is an MCP server" in ended.err) == (0, True), ended.err
    put = [body for path, body in sent(server) if path == f"PUT {route}"][-1]
    assert put == {"provider": "mcp", "params": {"url": typed}, "default_scopes": ["mcp:tools"]}


def test_an_mcp_server_that_registers_no_client_waits_for_one(command: Command, server: ScriptedEvergrant):
    typed, route = "http://127.0.0.1:9/mcp", "/v1/integrations/server"
    none = problem(424, "ClientMisconfigured", "discovery_failed")
    unregistered = problem(424, "ClientMisconfigured", "client_rejected", detail="Register one at https://i")
    waiting = {"name": "server", "state": "failed", "client_id": "", "registration": "automatic"}
    row = ScriptedResponse(200, an_integration(**waiting, provider="mcp", params={"url": typed}))
    server.script(f"GET {route}", NO_SUCH, row)
    server.script(f"PUT {route}", none, unregistered, row)
    server.script("GET /v1/apps/first-app/permits/server", NO_SUCH)
    server.script("PUT /v1/apps/first-app/permits/server", ScriptedResponse(201, example(Permit)))
    Path("secret").write_text(SECRET)
    flags = (
        "--provider",
        typed,
        "--client-id",
        "c-1",
        "--client-secret-file",
        "secret",
        "--subject",
        "alice",
    )
    ended = command("init", *flags)
    assert (ended.status, "Register one at https://i" in ended.err) == (0, True), ended.err
    put = [body for path, body in sent(server) if path == f"PUT {route}"][-1]
    client = {"client_id": "c-1", "client_secret": SECRET}
    assert put == {"provider": "mcp", "params": {"url": typed}, **client}


def test_the_redirect_uri_comes_before_the_client_id(command: Command, evergrant: ScriptedEvergrant):
    evergrant.script("GET /v1/integrations/crm", NO_SUCH)
    unnamed = command("integrations", "redirect-uri", "crm")
    assert (unnamed.status, "--provider" in unnamed.err) == (1, True)
    evergrant.script("PUT /v1/integrations/crm", ScriptedResponse(201, an_integration()))
    assert command("integrations", "redirect-uri", "crm", "--provider", "github").out == f"{URI}\n"
    assert sent(evergrant) == [("PUT /v1/integrations/crm", {"provider": "github"})]


def test_a_key_goes_into_a_file_and_is_not_shown(command: Command, evergrant: ScriptedEvergrant, here: Path):
    made = ScriptedResponse(201, example(ApiKey, key=SECRET))
    evergrant.script("POST /v1/apps/web/keys", problem(404, "BadRequest", "not_found"), made)
    assert command("apps", "key", "web").status == 1
    assert list(here.iterdir()) == []
    ended = command("apps", "key", "web", "--out", "k")
    assert (ended.status, SECRET in ended.out, (here / "k").read_text()) == (0, False, f"{SECRET}\n")
    taken = command("apps", "key", "web", "--out", "k")
    assert (taken.status, evergrant.count("POST /v1/apps/web/keys")) == (1, 2)


def settings(url: str, key: str = "key") -> str:
    return (
        f"# by make dev\nexport EVERGRANT_URL={url}\nEVERGRANT_API_KEY_FILE='{key}'\nEVERGRANT_DATA_DIR=x\n"
    )


def test_commands_read_the_folders_settings(
    command: Command, evergrant: ScriptedEvergrant, here: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("EVERGRANT_URL")
    evergrant.script("GET /v1/apps", page())
    (here / "key").write_text("evg_of_the_file\n")
    file = here / "evergrant.env"
    file.write_text(settings(evergrant.url))
    file.chmod(0o640)
    opened = command("apps", "ls")
    assert (opened.status, "chmod 600 evergrant.env" in opened.err) == (1, True)
    file.chmod(0o600)
    command("apps", "ls")
    monkeypatch.delenv("EVERGRANT_API_KEY")
    command("apps", "ls")
    assert [it.headers["authorization"] for it in evergrant.requests] == [
        "Bearer evg_canary",
        "Bearer evg_of_the_file",
    ]
    (here / "key").unlink()
    assert "EVERGRANT_API_KEY_FILE" in command("apps", "ls").err
    file.write_text(settings("https://elsewhere.example"))
    refused = command("apps", "ls")
    assert (refused.status, "export EVERGRANT_URL=https://elsewhere.example" in refused.err) == (1, True)
    file.write_text("EVERGRANT_URL=it's\n")
    assert command("apps", "ls").err.startswith("evergrant: settings_file_unreadable: ")


def test_the_admins_key_leases_nothing_and_the_apps_is_named(
    command: Command, evergrant: ScriptedEvergrant, here: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("EVERGRANT_URL", "EVERGRANT_API_KEY"):
        monkeypatch.delenv(name)
    for name in ("admin.key", "first-app.key"):
        (here / name).write_text("evg_of_the_file\n")
    file = here / "evergrant.env"
    file.write_text(settings(evergrant.url, "admin.key"))
    file.chmod(0o600)
    evergrant.script("POST /v1/lease", problem(403, "Denied", "not_permitted", repair="Give a permit."))
    told = command("token", "crm", "alice").err
    assert told.endswith("(With the app's own key: --api-key-file first-app.key. Give a permit.)\n")
    key = ("--api-key-file", "first-app.key")
    assert "With the app's own key" not in command("token", "crm", "alice", *key).err


def test_a_refused_connection_is_one_line_at_once(command: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EVERGRANT_URL", url := f"http://127.0.0.1:{free_port()}")
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    ended = command("connections", "ls")
    assert pauses == []
    assert (ended.status, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert f"nothing listens at {url}" in ended.err
    assert "make dev" in ended.err


@pytest.mark.parametrize("worktree", [False, True])
def test_git_ignores_what_init_and_keys_write(
    command: Command, server: ScriptedEvergrant, here: Path, worktree: bool, monkeypatch: pytest.MonkeyPatch
):
    """In any folder that is a clone, and without a change of its files."""
    run = partial(subprocess.run, check=True, capture_output=True, text=True)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    run([*git, "init", "-q", "clone"])
    if worktree:
        run([*git, "-C", "clone", "commit", "-q", "--allow-empty", "-m", "first"])
        run([*git, "-C", "clone", "worktree", "add", "-q", str(here / "beside")])
    folder = here / ("beside" if worktree else "clone") / "sub #1"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (here / "secret").write_text(SECRET)
    for _ in range(2):
        assert command("init", *FLAGS, "--client-secret-file", str(here / "secret")).status == 0
    command("export-key", "export.key", "export.pub")
    assert sorted(os.listdir(folder)) == ["export.key", "export.pub", "first-app.key", "lease.py"]
    assert run(["git", "status", "--porcelain", "--untracked-files=all"]).stdout == ""
    assert (here / "clone/.git/info/exclude").read_text().count("first-app.key") == 1


def test_json_for_programs_has_what_init_made(command: Command, server: ScriptedEvergrant, here: Path):
    (here / "secret").write_text(SECRET)
    made = json.loads(command("init", *FLAGS, "--client-secret-file", "secret", "-o", "json").out)
    assert (made["redirect_uri"], made["key_file"]) == (URI, "first-app.key")
