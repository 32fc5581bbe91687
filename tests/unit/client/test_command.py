"""The `evergrant` command as a shell sees it: exit status, one line of error, no token unasked."""

import asyncio
import json
import os
import pty
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.unit.client.scripted_evergrant import (
    LINK,
    TOKEN,
    ScriptedEvergrant,
    ScriptedResponse,
    connection,
    consent_required,
    lease,
    problem,
)

ROOT = Path(__file__).parents[3]
REPORT = "POST /v1/connections/con_1/refresh"
COMMAND = str(Path(sys.executable).parent / "evergrant")


@dataclass(frozen=True)
class Ended:
    status: int | None
    out: str
    err: str


async def command(evergrant: ScriptedEvergrant, *arguments: str, terminal: bool = False) -> Ended:
    """Run it with stdout a pipe, or a terminal."""
    env = {"PATH": os.environ["PATH"], "EVERGRANT_URL": evergrant.url, "EVERGRANT_API_KEY": "evg_canary"}
    env["PYTHONPATH"] = str(ROOT / "clients/python/src")  # this checkout's, whichever is installed
    ours, theirs = pty.openpty() if terminal else (None, None)
    child = await asyncio.create_subprocess_exec(
        COMMAND,
        *arguments,
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=theirs if theirs is not None else asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(child.communicate(), 30)
    if ours is not None and theirs is not None:
        os.close(theirs)
        out = os.read(ours, 65536)
        os.close(ours)
    ended = Ended(child.returncode, (out or b"").decode(), err.decode())
    assert "Traceback" not in ended.err
    return ended


async def test_a_token_goes_bare_into_a_pipe(evergrant: ScriptedEvergrant):
    evergrant.script("POST /v1/lease", lease())
    ended = await command(evergrant, "token", "crm", "alice", "--min-ttl", "60")
    assert ended == Ended(0, TOKEN + "\n", "")
    assert evergrant.seen[0].body["min_ttl"] == 60


async def test_a_token_is_hidden_on_a_terminal(evergrant: ScriptedEvergrant):
    evergrant.script("POST /v1/lease", lease())
    hidden = await command(evergrant, "token", "crm", "alice", terminal=True)
    assert hidden.status == 0
    assert TOKEN not in hidden.out
    assert "con_1" in hidden.out
    as_json = await command(evergrant, "token", "crm", "alice", "-o", "json", terminal=True)
    assert TOKEN not in as_json.out
    shown = await command(evergrant, "token", "crm", "alice", "--show", terminal=True)
    assert shown.out.strip() == TOKEN


async def test_a_proof_goes_bare_into_a_header(evergrant: ScriptedEvergrant):
    members = {"proof": "ey.J.x", "htu": "https://api.example/me", "generation": 3, "expires_at": None}
    answer = ScriptedResponse(200, {**members, "token_type": "DPoP", "connection_id": "con_1"})
    evergrant.script("POST /v1/connections/con_1/proof", answer)
    ended = await command(evergrant, "proof", "con_1", "get", "https://api.example/me", "--nonce", "n")
    assert ended == Ended(0, "ey.J.x\n", "")
    assert evergrant.seen[0].body == {"htm": "GET", "htu": "https://api.example/me", "nonce": "n"}


async def test_a_missing_consent_says_where_to_send_the_subject(evergrant: ScriptedEvergrant):
    evergrant.script("POST /v1/lease", consent_required())
    ended = await command(evergrant, "token", "crm", "alice")
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith("evergrant: consent_required: ")
    assert LINK in ended.err


async def test_an_error_is_one_line_with_code_and_repair(evergrant: ScriptedEvergrant):
    evergrant.script(
        "GET /v1/connections/con_9",
        problem(404, "BadRequest", "not_found", detail="no\x1b[31m such\nthing", repair="Check the name."),
    )
    ended = await command(evergrant, "connections", "get", "con_9")
    line = "evergrant: not_found: no [31m such thing (Check the name.)\n"
    assert ended == Ended(1, "", line)


@pytest.mark.parametrize(
    "arguments",
    [
        ("token", "crm"),
        ("nonsense",),
        ("connections", "revoke", "con_1"),
        ("connections", "ls", "--state", "lost"),
        ("providers", "-o", "yaml"),
    ],
)
async def test_misuse_is_status_2(evergrant: ScriptedEvergrant, arguments: tuple[str, ...]):
    ended = await command(evergrant, *arguments)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith("evergrant: usage: ")
    assert evergrant.seen == []


async def test_nothing_listens(evergrant: ScriptedEvergrant):
    ended = await command(evergrant, "providers", "--url", "https://")
    assert ended.status == 1
    assert ended.err.startswith("evergrant: url_invalid: ")


async def test_lists_as_table_and_as_json(evergrant: ScriptedEvergrant):
    long = "alice-" + "x" * 200
    page = ScriptedResponse(200, {"items": [connection(subject=long)], "next_cursor": None})
    evergrant.script("GET /v1/connections", page)
    table = await command(evergrant, "connections", "ls")
    header, row = table.out.splitlines()
    assert header.split()[:3] == ["ID", "INTEGRATION", "SUBJECT"]
    assert row.split()[:3] == ["con_1", "crm", long]
    (item,) = json.loads((await command(evergrant, "connections", "ls", "-o", "json")).out)
    assert item == connection(subject=long) | {
        "flow": "authorization_code",
        "created_at": "2030-01-01T00:00:00+00:00",
        "changed_at": "2030-01-01T00:00:00+00:00",
    }


@pytest.mark.parametrize("name", ["refresh", "reauthorize"])
async def test_commands_of_a_connection(evergrant: ScriptedEvergrant, name: str):
    evergrant.script(
        f"POST /v1/connections/con_1/{name}", ScriptedResponse(202, connection(connect_url=LINK))
    )
    ended = await command(evergrant, "connections", name, "con_1", "-o", "json")
    assert (ended.status, json.loads(ended.out)["connect_url"]) == (0, LINK)


async def test_a_refused_token_is_reported_with_its_generation(evergrant: ScriptedEvergrant):
    evergrant.script(REPORT, ScriptedResponse(200, connection(generation=8)))
    ended = await command(evergrant, "connections", "refresh", "con_1", "--refused", "7", "-o", "json")
    assert (ended.status, ended.err, json.loads(ended.out)["generation"]) == (0, "", 8)
    assert evergrant.seen[0].body == {"generation": 7, "reason": "unauthorized"}


async def test_a_report_that_helps_nobody_says_so(evergrant: ScriptedEvergrant):
    evergrant.script(REPORT, ScriptedResponse(200, connection(generation=7)))
    ended = await command(evergrant, "connections", "refresh", "con_1", "--refused", "7", "-o", "json")
    assert (ended.status, json.loads(ended.out)["generation"]) == (0, 7)
    assert ended.err == "generation 7 is still the newest: another refresh would not help now\n"


async def test_a_report_that_fails_says_when_to_come_back(evergrant: ScriptedEvergrant):
    facts = {"retry_after": 89.2, "repair": "Come back."}
    evergrant.script(REPORT, problem(503, "ProviderUnavailable", "provider_error", **facts))
    ended = await command(evergrant, "connections", "refresh", "con_1", "--refused", "7")
    line = "evergrant: provider_error: said so (Come back.) Retry-After: 90 seconds\n"
    assert ended == Ended(1, "", line)


@pytest.mark.parametrize("generation", ["0", "-1", "seven", "7.6", "none", ""])
async def test_what_is_no_generation_is_not_reported(evergrant: ScriptedEvergrant, generation: str):
    ended = await command(evergrant, "connections", "refresh", "con_1", "--refused", generation)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    said = "evergrant: usage: Invalid value for --refused: a generation is a whole number from 1 on"
    assert ended.err.startswith(said)
    assert evergrant.seen == []


async def test_revoke_sends_its_reason(evergrant: ScriptedEvergrant):
    evergrant.script("POST /v1/connections/con_1/revoke", ScriptedResponse(202, connection(state="revoking")))
    ended = await command(evergrant, "connections", "revoke", "con_1", "--reason", "left the company")
    assert ended.status == 0
    assert evergrant.seen[0].body == {"reason": "left the company"}


@pytest.mark.parametrize("output", ["table", "json"])
async def test_live_shows_where_the_store_differs(evergrant: ScriptedEvergrant, output: str):
    said = {
        "state": "needs_reauth",
        "generation": 1,
        "expires_at": None,
        "reason": "grant_rejected",
        "repairer": "subject",
        "failures": 1,
        "next_step": "wait for a new consent",
        "next_at": None,
    }
    differs = ["state", "reason"]
    evergrant.script(
        "GET /v1/connections/con_1", ScriptedResponse(200, connection(live=said, differs=differs))
    )
    ended = await command(evergrant, "connections", "get", "con_1", "--live", "-o", output)
    assert (ended.status, ended.err) == (0, "")
    assert evergrant.seen[0].query == {"live": "true"}
    if output == "json":
        shown = json.loads(ended.out)
        assert (shown["state"], shown["live"], shown["differs"]) == ("active", said, differs)
    else:
        marked = [line.split()[0] for line in ended.out.splitlines() if line.rstrip().endswith("differs")]
        assert marked == differs
        assert "wait for a new consent" in ended.out


async def test_live_without_an_answer_shows_the_store_and_fails(evergrant: ScriptedEvergrant):
    evergrant.script("GET /v1/connections/con_1", ScriptedResponse(200, connection(live=None, differs=None)))
    ended = await command(evergrant, "connections", "get", "con_1", "--live")
    assert ended.status == 1
    assert "active" in ended.out
    assert ended.err.startswith("evergrant: temporal_unavailable: ")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (problem(401, "BadRequest", "unauthenticated"), "unauthenticated"),
        (ScriptedResponse(404, "<html>", content_type="text/html"), "protocol_error"),
        (ScriptedResponse(200, {"items": []}, {"evergrant-version": "9.1.0"}), "version_mismatch"),
    ],
)
async def test_a_wrong_key_url_or_version_is_one_line(
    evergrant: ScriptedEvergrant, answer: ScriptedResponse, code: str
):
    evergrant.script("GET /v1/connections", answer)
    ended = await command(evergrant, "connections", "ls")
    assert (ended.status, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert ended.err.startswith(f"evergrant: {code}: ")


async def test_connect_waits_for_the_subject(evergrant: ScriptedEvergrant):
    pending = connection(state="pending_consent", connect_url=LINK)
    evergrant.script("POST /v1/connections", ScriptedResponse(201, pending))
    evergrant.script("GET /v1/connections/con_1", ScriptedResponse(200, connection()))
    asked = ("connections", "connect", "crm", "alice", "--scope", "a", "--scope", "b")
    ended = await command(evergrant, *asked, "--wait", "20", "-o", "json")
    assert (ended.err, json.loads(ended.out)["state"]) == (f"open {LINK}\n", "active")
    assert evergrant.seen[0].body["scopes"] == ["a", "b"]
    evergrant.script("GET /v1/connections/con_1", ScriptedResponse(200, pending))
    late = await command(evergrant, *asked, "--wait", "0.1")
    assert late.status == 1
    assert "timeout" in late.err


async def test_providers_apps_and_audit(evergrant: ScriptedEvergrant):
    app = {"id": "app_1", "name": "etl", "disabled": False, "created_at": "2030-01-01T00:00:00Z"}
    record = {
        "seq": 1,
        "lane": "main",
        "at": "2030-01-01T00:00:00Z",
        "action": "connection.created",
        "object": "con_1",
        "by": "app:etl",
        "trace_id": "",
        "detail": {},
        "workflow_run_id": None,
        "workflow_event_id": None,
    }
    for route, item in (
        ("providers", {"name": "github", "display_name": "GitHub"}),
        ("apps", app),
        ("connections/con_1/audit", record),
    ):
        evergrant.script(f"GET /v1/{route}", ScriptedResponse(200, {"items": [item], "next_cursor": None}))
    assert "GitHub" in (await command(evergrant, "providers")).out
    assert "etl" in (await command(evergrant, "apps", "ls")).out
    assert "connection.created" in (await command(evergrant, "audit", "con_1")).out
    evergrant.script("GET /v1/audit", ScriptedResponse(200, {"items": [record], "next_cursor": None}))
    assert "connection.created" in (await command(evergrant, "audit")).out


async def test_the_catalogue_of_a_checkout_is_looked_at_by_the_server_there(evergrant: ScriptedEvergrant):
    ended = await command(evergrant, "providers", "check", str(ROOT))
    assert ended.status == 0, ended
    assert " providers, " in ended.out
    assert ended.out.endswith(" 0 problems\n")
    as_json = await command(evergrant, "providers", "check", str(ROOT), "-o", "json")
    assert json.loads(as_json.out)["problems"] == []
    assert evergrant.seen == []


async def test_no_checkout_is_no_catalogue(evergrant: ScriptedEvergrant, tmp_path: Path):
    ended = await command(evergrant, "providers", "check", str(tmp_path))
    assert (ended.status, ended.out) == (1, "")
    assert "is no checkout of Evergrant" in ended.err
