"""The `evergrant` command: exit status, one line for an error, no secret on a terminal unless asked for."""

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from evergrant import App, DeviceCode, LiveStatus, Proof
from evergrant.api.models import AccessExplanation, ApiKey, Approval, Credential, PermitAccess, TrustedIssuer

from tests.unit.client.conftest import Command, Ended
from tests.unit.client.scripted_evergrant import (
    INTEGRATION,
    LINK,
    SECRET,
    TOKEN,
    ScriptedEvergrant,
    ScriptedResponse,
    a_delivery,
    a_version,
    a_webhook,
    an_integration,
    audit_record,
    connection,
    consent_required,
    example,
    lease,
    page,
    problem,
)

ROOT = Path(__file__).parents[3]
CONTROLS: dict[str, Any] = {"detail": "no\x1b[31m such\nthing", "repair": "Check the name."}
MISSING = problem(404, "BadRequest", "not_found", **CONTROLS)
BUSY = problem(503, "ProviderUnavailable", "provider_error", retry_after=89.2, repair="Try again later.")
REPORT = "POST /v1/connections/con_1/refresh"


def test_a_token_is_printed_in_full_to_a_pipe(command: Command, evergrant: ScriptedEvergrant):
    evergrant.script("POST /v1/lease", lease())
    assert command("token", "crm", "alice", "--min-ttl", "60") == Ended(0, TOKEN + "\n", "")
    assert evergrant.requests[0].body["min_ttl"] == 60


@pytest.mark.parametrize(("option", "shown"), [((), False), (("-o", "json"), False), (("--show",), True)])
def test_a_token_is_hidden_on_a_terminal(evergrant: ScriptedEvergrant, option: tuple[str, ...], shown: bool):
    evergrant.script("POST /v1/lease", lease())
    env = {"PATH": os.environ["PATH"], "EVERGRANT_URL": evergrant.url, "EVERGRANT_API_KEY": "evg_canary"}
    env["PYTHONPATH"] = str(ROOT / "clients/python/src")
    executable = str(Path(sys.executable).parent / "evergrant")
    ours, theirs = pty.openpty()
    subprocess.run([executable, "token", "crm", "alice", *option], env=env, stdout=theirs, check=True)
    os.close(theirs)
    out = os.read(ours, 65536).decode()
    os.close(ours)
    assert (TOKEN in out, "con_1" in out) == (shown, not shown)


def test_a_missing_consent_prints_the_link(command: Command, evergrant: ScriptedEvergrant):
    evergrant.script("POST /v1/lease", consent_required())
    ended = command("token", "crm", "alice")
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith("evergrant: consent_required: ")
    assert LINK in ended.err


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (MISSING, "not_found: no [31m such thing: connection con_9 (Check the name.)"),
        (BUSY, "provider_error: the reason (Try again in 90 seconds.)"),
    ],
)
def test_an_error_is_one_line_with_code_repair_and_wait(
    command: Command, evergrant: ScriptedEvergrant, answer: ScriptedResponse, line: str
):
    evergrant.script("GET /v1/connections/con_9", answer)
    assert command("connections", "get", "con_9") == Ended(1, "", f"evergrant: {line}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("token", "crm"),
        ("nonsense",),
        ("connections", "revoke", "con_1"),
        ("connections", "ls", "--state", "lost"),
        ("providers", "-o", "xml"),
        *(("connections", "refresh", "con_1", "--refused", it) for it in ("0", "-1", "7.6", "none", "")),
    ],
)
def test_wrong_usage_is_status_2(command: Command, evergrant: ScriptedEvergrant, arguments: tuple[str, ...]):
    ended = command(*arguments)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith("evergrant: usage: ")
    assert evergrant.requests == []


def test_a_list_is_a_table_or_json(command: Command, evergrant: ScriptedEvergrant):
    long = "alice-" + "x" * 200
    evergrant.script("GET /v1/connections", page(connection(subject=long)))
    header, row = command("connections", "ls").out.splitlines()
    assert header.split()[:3] == ["ID", "INTEGRATION", "SUBJECT"]
    assert row.split()[:3] == ["con_1", "crm", long]
    (item,) = json.loads(command("connections", "ls", "-o", "json").out)
    moment = "2030-01-01T00:00:00+00:00"
    whole = connection(subject=long) | {"created_at": moment, "changed_at": moment}
    assert item == {name: whole[name] for name in item}
    assert {"id", "subject", "state", "scopes", "expires_at"} <= set(item)


def test_an_admin_reads_what_the_provider_said(command: Command, evergrant: ScriptedEvergrant):
    said = {
        "at": "2030-01-01T00:00:00Z",
        "reason": "callback_invalid",
        "reference": "3k7v9-m2xqt",
        "error": "access_denied",
        "description": "No API for this plan",
        "unauthenticated": True,
    }
    evergrant.script("GET /v1/connections", page(connection(provider_said=said)))
    evergrant.script("GET /v1/connections/con_1", ScriptedResponse(200, connection(provider_said=said)))
    command("connections", "ls", "--reference", "3k7v9-m2xqt")
    assert evergrant.requests[-1].query == {"reference": "3k7v9-m2xqt"}
    out = command("connections", "get", "con_1").out
    assert "unauthenticated, access_denied: No API for this plan" in out
    assert "3k7v9-m2xqt" in out


@pytest.mark.parametrize(
    ("newest", "note"),
    [(8, ""), (7, "generation 7 is still the newest: another refresh would not help now\n")],
)
def test_a_refused_token_is_reported_with_its_generation(
    command: Command, evergrant: ScriptedEvergrant, newest: int, note: str
):
    evergrant.script(REPORT, ScriptedResponse(200, connection(generation=newest)))
    ended = command("connections", "refresh", "con_1", "--refused", "7", "-o", "json")
    assert (ended.status, ended.err, json.loads(ended.out)["generation"]) == (0, note, newest)
    assert evergrant.requests[0].body == {"generation": 7, "reason": "unauthorized"}


@pytest.mark.parametrize("output", ["table", "json"])
def test_live_marks_where_the_store_differs(command: Command, evergrant: ScriptedEvergrant, output: str):
    changed = {"state": "needs_reauth", "reason": "grant_rejected", "next_step": "wait for a new consent"}
    live = example(LiveStatus, **changed)
    differs = ["state", "reason"]
    evergrant.script(
        "GET /v1/connections/con_1", ScriptedResponse(200, connection(live=live, differs=differs))
    )
    ended = command("connections", "get", "con_1", "--live", "-o", output)
    assert (ended.status, ended.err) == (0, "")
    assert evergrant.requests[0].query == {"live": "true"}
    if output == "json":
        shown = json.loads(ended.out)
        assert (shown["state"], shown["live"] | live, shown["differs"]) == ("active", shown["live"], differs)
    else:
        marked = [line.split()[0] for line in ended.out.splitlines() if line.rstrip().endswith("differs")]
        assert marked == differs
        assert "wait for a new consent" in ended.out


def test_live_without_an_answer_shows_the_store_and_fails(command: Command, evergrant: ScriptedEvergrant):
    evergrant.script("GET /v1/connections/con_1", ScriptedResponse(200, connection(live=None, differs=None)))
    ended = command("connections", "get", "con_1", "--live")
    assert ended.status == 1
    assert "active" in ended.out
    assert ended.err.startswith("evergrant: temporal_unavailable: ")
    assert ended.err.count("\n") == 1


def test_connect_waits_for_the_subject(command: Command, evergrant: ScriptedEvergrant):
    pending = connection(state="pending_consent", connect_url=LINK)
    evergrant.script("POST /v1/connections", ScriptedResponse(201, pending))
    active = connection(scopes=["read"], metadata={"team": "T1"})
    evergrant.script("GET /v1/connections/con_1", ScriptedResponse(200, active))
    connect = ("connect", "crm", "alice", "--scope", "a", "--scope", "b", "--wait", "--timeout")
    ended = command(*connect, "20", "-o", "json")
    assert (ended.err, json.loads(ended.out)["state"]) == (
        f"open {LINK}\nalice is connected at crm with read (team T1)\n",
        "active",
    )
    assert evergrant.requests[0].body["scopes"] == ["a", "b"]
    evergrant.script("GET /v1/connections/con_1", ScriptedResponse(200, pending))
    late = command(*connect, "0.1")
    assert late.status == 1
    assert "timeout" in late.err
    device = example(DeviceCode, verification_uri="https://e/device", user_code="WDJB-MJHT")
    evergrant.script("POST /v1/connections", ScriptedResponse(201, pending | {"device": device}))
    assert command(*connect, "0.1").err.startswith("open https://e/device and enter WDJB-MJHT\n")


def test_the_catalogue_of_a_checkout_is_checked_by_its_own_server(
    command: Command, evergrant: ScriptedEvergrant, tmp_path: Path
):
    package = tmp_path / "evergrant_server"
    package.mkdir()
    (package / "__main__.py").write_text("import sys\nprint(*sys.argv[1:])\nsys.exit(1)")
    checked = command("providers", "check", str(tmp_path), "-o", "json")
    assert checked == Ended(1, "providers check -o json\n", "")
    tried = command("providers", "try", "slack", "--no-browser", "--checkout", str(tmp_path), "--help")
    assert tried == Ended(1, "providers try slack --no-browser --help\n", "")
    explained = command("providers", "explain", "slack", "--status", "200", "--checkout", str(tmp_path))
    assert explained == Ended(1, "providers explain slack --status 200\n", "")
    listed = command("providers", "check", str(tmp_path), "--sources")
    assert listed == Ended(1, "providers check --sources\n", "")
    ended = command("providers", "check", str(package))
    assert (ended.status, ended.out) == (1, "")
    assert "is no checkout of Evergrant" in ended.err
    assert evergrant.requests == []


def test_a_secret_is_read_from_a_file_or_the_standard_input(
    command: Command, evergrant: ScriptedEvergrant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    evergrant.script("PUT /v1/integrations/crm", ScriptedResponse(201, an_integration()))
    evergrant.script("POST /v1/integrations/crm/rotate-secret", ScriptedResponse(200, an_integration()))
    put = ("integrations", "put", "crm", "--provider", "gitlab", "--client-id", "c-1", "--param", "a=b=c")
    ended = command(*put, "--client-secret-file", str(file), "--scope", "read", "-o", "json")
    assert (ended.status, json.loads(ended.out)["redirect_uri"]) == (0, "https://e/oauth/callback/int_1")
    assert evergrant.requests[0].body == {**INTEGRATION, "params": {"a": "b=c"}, "default_scopes": ["read"]}
    monkeypatch.setattr("sys.stdin", io.StringIO(SECRET))
    rotate = ("integrations", "rotate-secret", "crm", "--client-secret-file", "-", "--overlap", "60")
    assert command(*rotate).status == 0
    assert evergrant.requests[1].body == {"client_secret": SECRET, "overlap_s": 60}


@pytest.mark.parametrize(
    "arguments",
    [
        ("providers", "propose", "/nowhere/acme.json"),
        ("providers", "propose", "pyproject.toml"),
        ("providers", "--url", "https://"),
        ("integrations", "put", "crm", "--provider", "gitlab", "--client-id", "c", "--param", "a"),
        ("integrations", "rotate-secret", "crm", "--client-secret-file", "/nowhere/secret"),
        ("import", "absent.jsonl"),
        ("export", "--to", "absent", "--out", "x"),
    ],
)
def test_an_unusable_argument_is_one_line(command: Command, arguments: tuple[str, ...]):
    ended = command(*arguments)
    assert (ended.status, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert ended.err.startswith("evergrant: ")


APPROVED = {"version": 1, "accept_hosts": False}
CONFIRM = {"code": "c-1", "subject": "alice"}
NO = {"version": 1, "reason": "no"}
CONNECT = "connect crm alice --expect email=a@b.example --expect hd=b.example --login-hint a"
MEANT = {"expect": {"email": "a@b.example", "hd": "b.example"}, "login_hint": "a"}
CONNECTED = {"integration": "crm", "subject": "alice", "label": "default", "account": MEANT}
ROLL_BACK = {"roll_back": True}
AT_ONCE = {"overlap": 0}
PUT_HOOK = "webhooks put hooks https://a.example --event connection.revoked"
SUBSCRIBED = {"url": "https://a.example", "disabled": False, "events": ["connection.revoked"]}
PROVE = "proof con_1 get https://api.example/me --nonce n"
PROOF_REQUEST = {"htm": "GET", "htu": "https://api.example/me", "nonce": "n"}
PROOF = example(Proof, proof="ey.J.x")
APPROVAL = example(Approval, command="POST /v1/apps/etl/keys")
TRUST = "apps credentials put-workload etl ci --issuer ci --claim sub=a=b --claim ref=r"
TRUSTED = {
    "method": "workload_identity",
    "parameters": {"issuer": "ci", "claims": {"sub": "a=b", "ref": "r"}},
}
PUT_ISSUER = "issuers put ci oidc https://i.example"
ISSUER = example(TrustedIssuer, keys_problem="status 500")
NEW_KEY = example(ApiKey, key=SECRET)
CREDENTIAL = example(Credential, method="private_key_jwt", parameters={})
EXPLAINED = example(
    AccessExplanation,
    decided_by="p-1",
    allowed=True,
    also_allowed_by=["p-2"],
    also_denied_by=[],
    observed_by=["p-4"],
    why_not=[
        {"permit": "p-3", "effect": "allow", "field": "scope", "scopes": ["write"]},
        {"permit": "p-5", "effect": "deny", "field": "expiry", "scopes": []},
    ],
    stopped_by=[{"code": "authority_broken", "detail": "per_1 in permit was changed."}],
)
PERMIT = example(PermitAccess, app="etl", subjects=["=cmd()"])
GITHUB = {"name": "github", "display_name": "GitHub"}
OPENED = connection(connect_url=LINK)
CRM, ACME, HOOK, MADE, DELIVERY = (
    an_integration(), a_version(), a_webhook(), a_webhook(secret=SECRET), a_delivery()
)  # fmt: skip


@pytest.mark.parametrize(
    ("line", "route", "body", "answer", "shown"),
    [
        (CONNECT, "POST connections", CONNECTED, OPENED, LINK),
        ("connections refresh con_1", "POST connections/con_1/refresh", {}, OPENED, LINK),
        ("connections reauthorize con_1", "POST connections/con_1/reauthorize", {}, OPENED, LINK),
        ("connections choose con_1 a", "POST connections/con_1/choose", {"choice": "a"}, OPENED, "alice"),
        ("connections confirm con_1 c-1 alice", "POST connections/con_1/confirm", CONFIRM, OPENED, "alice"),
        ("connections revoke con_1 --reason x", "POST connections/con_1/revoke", {"reason": "x"}, OPENED, ""),
        ("audit con_1", "GET connections/con_1/audit", None, [audit_record()], "grant.refreshed"),
        ("audit", "GET audit", None, [audit_record()], "grant.refreshed"),
        (PROVE, "POST connections/con_1/proof", PROOF_REQUEST, PROOF, "ey.J.x\n"),
        ("apps ls", "GET apps", None, [example(App, name="etl")], "etl"),
        ("apps keys ls etl", "GET apps/etl/keys", None, [example(ApiKey, id="key_1", key=None)], "key_1"),
        ("apps keys create etl --days 2", "POST apps/etl/keys", {"lifetime": 172800}, NEW_KEY, SECRET),
        ("apps keys revoke etl key_1", "DELETE apps/etl/keys/key_1", None, None, ""),
        ("apps credentials ls etl", "GET apps/etl/credentials", None, [CREDENTIAL], "private_key_jwt"),
        ("apps credentials rm etl main", "DELETE apps/etl/credentials/main", None, None, ""),
        ("approvals ls", "GET approvals", None, [APPROVAL], "POST /v1/apps/etl/keys"),
        ("approvals give apr_1", "POST approvals/apr_1", None, APPROVAL, "POST /v1/apps/etl/keys"),
        (TRUST, "PUT apps/etl/credentials/ci", TRUSTED, CREDENTIAL, "private_key_jwt"),
        (PUT_ISSUER, "PUT issuers/ci", {"kind": "oidc", "issuer": "https://i.example"}, ISSUER, "status 500"),
        ("issuers ls", "GET issuers", None, [ISSUER], "status 500"),
        ("issuers get ci", "GET issuers/ci", None, ISSUER, "status 500"),
        ("issuers delete ci", "DELETE issuers/ci", None, None, ""),
        ("access explain etl con_1 read write", "GET access/explain", None, EXPLAINED, "authority_broken"),
        ("access report", "GET access", None, [PERMIT], "etl"),
        ("providers", "GET providers", None, [GITHUB], "GitHub"),
        ("providers ls", "GET providers", None, [GITHUB], "GitHub"),
        ("providers versions acme", "GET providers/acme/versions", None, [ACME], "text"),
        ("providers approve acme 1", "POST providers/acme/approve", APPROVED, ACME, "warning: a new host"),
        ("providers reject acme 1 --reason no", "POST providers/acme/reject", NO, ACME, "acme-crm"),
        ("providers roll-back acme 1 --reason no", "POST providers/acme/roll-back", NO, ACME, "acme-crm"),
        ("integrations ls", "GET integrations", None, [CRM], "crm"),
        ("integrations get crm", "GET integrations/crm", None, CRM, "int_1"),
        ("integrations delete crm", "DELETE integrations/crm", None, None, ""),
        ("integrations roll-secret-back crm", "POST integrations/crm/rotate-secret", ROLL_BACK, CRM, "crm"),
        (PUT_HOOK, "PUT webhooks/hooks", SUBSCRIBED, MADE, SECRET),
        ("webhooks ls", "GET webhooks", None, [HOOK], "hooks.example.com"),
        ("webhooks get hooks", "GET webhooks/hooks", None, HOOK, "hooks.example.com"),
        ("webhooks rotate hooks --overlap 0", "POST webhooks/hooks/rotate-secret", AT_ONCE, MADE, SECRET),
        ("webhooks deliveries hooks", "GET webhooks/hooks/deliveries", None, [DELIVERY], "refused"),
        ("webhooks replay hooks d1", "POST webhooks/hooks/deliveries/d1/replay", None, DELIVERY, "failed"),
        ("webhooks test hooks", "POST webhooks/hooks/test", None, DELIVERY, "dlv_1"),
        ("webhooks delete hooks", "DELETE webhooks/hooks", None, None, ""),
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
    (sent,) = evergrant.requests
    assert sent.body == body


def test_an_explanation_accounts_for_every_permit(command: Command, evergrant: ScriptedEvergrant):
    evergrant.script("GET /v1/access/explain", ScriptedResponse(200, EXPLAINED | {"omitted": 800}))
    out = command(
        "access", "explain", "etl", "con_1", "read", "write", "--action", "proxy", "--address", "::1"
    ).out
    asked = {"app": "etl", "connection": "con_1", "scopes": "read write", "action": "proxy"}
    asked["address"] = "::1"
    assert evergrant.requests[0].query == asked
    lines = [line.rstrip().split(maxsplit=1) for line in out.splitlines()]
    for row in (
        ["p-1", "allows it"],
        ["p-2", "allows it too"],
        ["p-4", "would deny it in mode enforce"],
        ["p-3", "is for another scope (write)"],
        ["p-5", "has ended"],
    ):
        assert row in lines
    assert "and 800 more\n" in out
    shown = json.loads(command("access", "explain", "etl", "con_1", "-o", "json").out)
    assert shown == EXPLAINED | {"omitted": 800}


def test_the_pages_of_a_csv_report_are_one_file(command: Command, evergrant: ScriptedEvergrant):
    following = {"link": '</v1/access?format=csv&limit=200&cursor=c-1>; rel="next"'}
    first = ScriptedResponse(200, "app,permit\r\na,p\r\n", content_type="text/csv", headers=following)
    evergrant.script("GET /v1/access", first, ScriptedResponse(200, "b,p\r\n", content_type="text/csv"))
    assert command("access", "report", "--csv") == Ended(0, "app,permit\na,p\nb,p\n", "")
    assert [it.query.get("cursor") for it in evergrant.requests] == [None, "c-1"]


def test_a_webhooks_secret_is_shown_only_when_it_is_made(command: Command, evergrant: ScriptedEvergrant):
    evergrant.script("GET /v1/webhooks/hooks", ScriptedResponse(200, a_webhook(secret=None)))
    assert "secret" not in json.loads(command("webhooks", "get", "hooks", "-o", "json").out)


def test_a_definition_is_proposed_from_a_file(command: Command, evergrant: ScriptedEvergrant, tmp_path: Path):
    file = tmp_path / "acme.json"
    file.write_text('{"name": "acme-crm"}')
    evergrant.script("POST /v1/providers", ScriptedResponse(201, a_version(state="checking")))
    assert command("providers", "propose", str(file)).status == 0
    assert evergrant.requests[0].body == {"definition": {"name": "acme-crm"}}
