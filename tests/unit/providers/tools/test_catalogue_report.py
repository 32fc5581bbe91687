"""`providers check`: each rule finds its mistake, and the catalogue has none."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from evergrant_server.core.definition import CheckLevel, CheckResult
from evergrant_server.egress import Egress, EgressPolicy
from providers.definition.parsing import parse_definition
from providers.definition.validation import problems_of
from providers.tools.catalogue_report import check_catalogue
from providers.tools.definition_check import check_definition
from tests.fakes.patience import PATIENCE_S
from tests.unit.providers.samples import spec_like

ROOT = Path(__file__).parents[4]
NO_REFRESH = {"refresh_supported": False, "revocation_endpoint": None}
DOMAIN = {"token_endpoint": "https://{d}/token", "authorization_endpoint": "https://{d}/authorize"}
SUBDOMAIN = {"token_endpoint": "https://{d}.acme.example/token"}


def found(**fields: Any) -> set[str]:
    spec = spec_like(**{"categories": ["crm"], "sources": {"agreeing": {"token_endpoint": 2}}, **fields})
    return {problem.field for problem in problems_of(spec, "acme.yaml")}


def pinned(where: dict[str, str], **rule: Any) -> set[str]:
    return found(**where, revocation_endpoint=None, template_params={"d": rule})


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({**NO_REFRESH, "refresh_rotates": True}, "refresh_rotates"),
        ({**NO_REFRESH, "refresh_endpoint": "https://acme.example/r"}, "refresh_endpoint"),
        ({**NO_REFRESH, "refresh_token_idle_s": 5}, "refresh_token_idle_s"),
        ({**NO_REFRESH, "offline_scope": "offline"}, "offline_scope"),
        ({"refresh_supported": False}, "revocation.token"),
        ({"refresh_rotates": False, "on_reuse": "family_revoked"}, "on_reuse"),
        ({"install_start_url": "https://app.example/start"}, "install_start_url"),
        ({"code_lifetime_s": 30}, "sources.by_field"),
        ({"down_scoping": "unsupported"}, "sources.by_field"),
        ({"token_limit": {"requests": 8, "window_s": 60, "per": "user"}}, "sources.by_field"),
        ({"account_id": "id", "response": {"metadata_paths": ["id"]}}, "sources.by_field"),
        ({"scopes_supported": False, "default_scopes": ["a"]}, "default_scopes"),
        ({"scopes_supported": False, "scope_separator": ","}, "scope_separator"),
        ({"scopes_supported": False, "down_scoping": "refresh"}, "down_scoping"),
        ({"default_scopes": ["a b"]}, "default_scopes"),
        ({"default_scopes": ["a", "offline"], "offline_scope": "offline"}, "default_scopes"),
        ({"client_auth": "client_secret_basic", "client_secret_param": "secret"}, "client_secret_param"),
        ({"client_auth": "none", "client_secret_header": "x-secret"}, "client_secret_header"),
        (
            {"client_auth": "client_secret_post", "basic_auth_template": "{client_secret}:"},
            "basic_auth_template",
        ),
        ({"pkce": "off", "pkce_challenge_encoding": "hex"}, "pkce_challenge_encoding"),
        ({"pkce": "off", "client_auth": "none"}, "pkce"),
        ({"token_request_method": "GET", "token_request_format": "json"}, "token_request_format"),
        ({"auth_modes": ["authorization_code", "device_code"]}, "device_authorization_endpoint"),
        ({"device_authorization_endpoint": "https://acme.example/d"}, "auth_modes"),
        ({"auth_modes": ["oauth1"]}, "request_token_endpoint"),
        ({"client_credentials": {}}, "client_credentials"),
        ({"revocation_endpoint": None, "revocation": {}}, "revocation"),
        ({"revocation": {"url": "https://acme.example/x"}}, "revocation_endpoint"),
        ({"revocation": {"auth": "header"}}, "revocation.auth_template"),
        ({"response": {"expires_at_format": "epoch_s"}}, "response.expires_at_format"),
        ({"response": {"refresh_expires_at_format": "epoch_ms"}}, "response.refresh_expires_at_format"),
        ({"response": {"metadata_paths": ["incoming_webhook.url"]}}, "response.metadata_paths"),
        ({"response": {"metadata_paths": ["access_token"]}}, "response.metadata_paths"),
        ({"callback_metadata_params": ["code"]}, "callback_metadata_params"),
        ({"template_params": {"d": {"enum": ["a"]}}}, "template_params.d"),
        ({"token_endpoint": "https://127.0.0.1/token"}, "token_endpoint"),
        ({"token_endpoint": "https://internal/token"}, "token_endpoint"),
        ({"token_endpoint": "https://login.acme.example/token", "sources": {}}, "sources.agreeing"),
        ({"sources": {"agreeing": {"tokn_endpoint": 2}}}, "sources"),
        ({"categories": ["crmm"]}, "categories"),
        ({"categories": []}, "categories"),
    ],
)
def test_contradiction_found(fields: dict[str, Any], field: str) -> None:
    assert field in found(**fields)


@pytest.mark.parametrize(
    ("where", "rule"),
    [
        (DOMAIN, {"pattern": r"^[a-z.]+$"}),
        (DOMAIN, {"pattern": r"^(?:[a-z]+\.)+com$"}),
        (DOMAIN, {"pattern": r"^[a-z0-9.]+$"}),
        ({"token_endpoint": "https://acme.{d}/token"}, {"pattern": "^[a-z]{2,12}$"}),
        ({"token_endpoint": "https://{d}.com/token"}, {"pattern": "^[a-z]+$"}),
        ({"token_endpoint": "https://{d}.co.uk/token"}, {"pattern": "^[a-z]+$"}),
    ],
)
def test_foreign_host_found(where: dict[str, str], rule: dict[str, Any]) -> None:
    assert "template_params.d" in pinned(where, **rule)


@pytest.mark.parametrize(
    ("where", "rule"),
    [
        (DOMAIN, {"pattern": r"^(?:[a-z]+\.)+acme\.example$"}),
        (DOMAIN, {"kind": "arbitrary_host"}),
        (DOMAIN, {"enum": ["a.acme.example", "b.acme.example"]}),
        (SUBDOMAIN, {"pattern": r"^[a-z0-9.]+$"}),
        ({"token_endpoint": "https://acme.{d}/token"}, {"pattern": "^(?:com|co\\.uk)$"}),
        ({"token_endpoint": "https://acme.example/{d}/token"}, {"pattern": "^[a-z.]+$"}),
    ],
)
def test_vendor_host_accepted(where: dict[str, str], rule: dict[str, Any]) -> None:
    assert pinned(where, **rule) == set()


def written(folder: Path, name: str, **fields: Any) -> None:
    plain = {
        "name": name,
        "display_name": name,
        "categories": ["crm"],
        "auth_modes": ["authorization_code"],
        "authorization_endpoint": "https://acme.example/authorize",
        "token_endpoint": "https://acme.example/token",
        "sources": {"agreeing": {"token_endpoint": 2}},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(plain | fields))


def test_report_on_files_and_vectors(tmp_path: Path) -> None:
    vectors = tmp_path / "vectors"
    vectors.mkdir()
    written(tmp_path, "one")
    written(tmp_path, "two", client_auth="client_secret_post", sources={})
    (tmp_path / "three.yaml").write_text("name: [")
    written(tmp_path, "four", pkce="plain")
    (vectors / "two.yaml").write_text("authorize: {a: b}\nexchange: {a: b}\nscopes: []\n")
    (vectors / "four.yaml").write_text("a: b")  # its definition can't be read: nothing to say of it
    (vectors / "five.yaml").write_text("a: b")
    found = check_catalogue(tmp_path, vectors)
    assert (found.count, found.with_two_sources, found.vectors) == (2, 1, 3)
    assert {(problem.file, problem.field) for problem in found.problems} == {
        ("two.yaml", "client_auth"),
        ("three.yaml", "file"),
        ("four.yaml", "pkce"),
        ("vectors/one.yaml", "file"),
        ("vectors/two.yaml", "refusals"),
        ("vectors/two.yaml", "refresh"),
        *(("vectors/two.yaml", field) for field in ("authorize.a", "authorize.url", "authorize.query")),
        *(("vectors/two.yaml", f"exchange.{field}") for field in ("a", "request", "reply", "tokens")),
        ("vectors/five.yaml", "file"),
    }
    assert check_catalogue(tmp_path, tmp_path / "nowhere").vectors is None


KINDS = "'dead_token', 'dead_code', 'subject', 'client' or 'passing'"
EVIDENCE = "'dead_token', 'client', 'passing', 'success' or 'refresh'"


def refused(code: str = "client_rejected", source: str = "https://a.example") -> str:
    """A vector with one refusal of a client."""
    refusal = f"{{of: client, code: {code}, source: '{source}', reply: {{status: 401}}}}"
    return f"scopes: []\nrefusals: [{refusal}]\n"


@pytest.mark.parametrize(
    ("vector", "field", "what"),
    [
        ("[]", "file", "is not a mapping of fields"),
        ("{}", "scopes", "is missing"),
        ("scopes: []\ncallback: []", "callback", "is no field; callbacks is one"),
        ("scopes: read", "scopes", "must be a list: [one, another] (it is a string of 4 characters)"),
        ("params: {d: a}\nscopes: []", "params.d", "is not a parameter of one, which has none"),
        ("exchange: {replay: {status: 200}}", "exchange.replay", "is no field; exchange.reply is one"),
        (
            "refresh: {reply: {status: OK}}",
            "refresh.reply.status",
            "must be a whole number (it is a string of 2 characters)",
        ),
        ("scopes: []\nexchange: {tokens: {access_token: a}}", "exchange.tokens.expires_in", "is missing"),
        (
            "refresh: {tokens: {expires_at: 1}}",
            "refresh.tokens.expires_at",
            "is no field; refresh.tokens.expires_in is one",
        ),
        ("replies: [{tokens: {scopes: null}}]", "replies.0.tokens.refresh_token", "is missing"),
        ("refusals: [{of: dead}]", "refusals.0.of", f"must be {KINDS} (it is a string of 4 characters)"),
        ("refusals: [{of: client, code: client_rejected}]", "refusals.0.source", "is missing"),
        (
            refused("grant_rejected"),
            "refusals.0.code",
            "is grant_rejected, but a client is read as client_rejected",
        ),
        (
            "refusals: [{of: client, sourcce: a}]",
            "refusals.0.sourcce",
            "is no field; refusals.0.source is one",
        ),
        (refused(source="unverified"), "none_found", "lacks client, which has no source"),
        (refused() + "none_found: [client]", "none_found", "has client, which has a source"),
        ("none_found: [error]", "none_found.0", f"must be {EVIDENCE} (it is a string of 5 characters)"),
    ],
)
def test_incomplete_vector_found(tmp_path: Path, vector: str, field: str, what: str) -> None:
    (tmp_path / "vectors").mkdir()
    written(tmp_path, "one")
    (tmp_path / "vectors" / "one.yaml").write_text(vector)
    found = check_catalogue(tmp_path, tmp_path / "vectors").problems
    assert (field, what) in {(problem.field, problem.what) for problem in found}


def test_catalogue_has_no_problem() -> None:
    found = check_catalogue()
    assert found.problems == ()
    assert found.count >= 250
    assert found.two_source_share > 0.9
    assert sum(found.evidence["dead_token"]) == found.count


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "evergrant_server", "providers", "check", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE_S)


def test_command_reports_problems_and_exits_with_1(tmp_path: Path) -> None:
    written(tmp_path, "one", token_request_method="GET", token_request_format="json")
    told = run("--catalog", str(tmp_path), "--vectors", str(tmp_path), "-o", "json")
    assert told.returncode == 1, told.stderr
    read = json.loads(told.stdout)
    assert read["count"] == 1
    assert read["problems"][0]["field"] == "token_request_format"
    assert run("--catalog", str(tmp_path / "nowhere")).stderr.startswith("evergrant: invalid_request")


async def test_rules_apply_to_a_tenants_definition() -> None:
    spec = spec_like(
        authorization_endpoint="https://{d}/authorize",
        token_endpoint="https://{d}/token",
        revocation_endpoint=None,
        template_params={"d": {"pattern": "^[a-z.]+$"}},  # no default: there is no host to ask
    )
    findings = await check_definition(Egress(EgressPolicy()), spec, None)
    warned = [finding.detail for finding in findings if finding.check == "rules"]
    assert len(warned) == 1, "neither categories nor sources: those are the catalogue's own"
    assert warned[0].startswith("template_params.d: accepts evil.com in the host")


# --- the check of a proposed definition names every new host of secrets --------------------------

BEFORE: dict[str, Any] = {
    "name": "acme-crm",
    "display_name": "Acme CRM",
    "auth_modes": ["authorization_code"],
    "authorization_endpoint": "https://127.0.0.1/authorize",  # refused: nothing is sent anywhere
    "token_endpoint": "https://{region}/token",
    "refresh_endpoint": "https://127.0.0.1/refresh",
    "template_params": {
        "region": {"enum": ["127.0.0.2", "127.0.0.3"], "default": "127.0.0.2"},
    },
    "revocation_endpoint": "https://127.0.0.1/revoke",
    "pkce": "S256",
}


async def hosts(**changed: Any) -> CheckResult:
    before, after = parse_definition(BEFORE, "before"), parse_definition(BEFORE | changed, "after")
    findings = await check_definition(Egress(EgressPolicy()), after, before)
    (found,) = [it for it in findings if it.check == "hosts"]
    return found


@pytest.mark.parametrize(
    ("host", "changed"),
    [
        ("127.0.0.9", {"revocation": {"url": "https://127.0.0.9/revoke"}}),
        ("127.0.0.9", {"device_authorization_endpoint": "https://127.0.0.9/device"}),
        ("127.0.0.9", {"api_base_url": "https://127.0.0.9/v1"}),
        ("127.0.0.3", {"template_params": {"region": {"enum": ["127.0.0.3"], "default": "127.0.0.3"}}}),
    ],
)
async def test_new_host_of_secrets_named(host: str, changed: dict[str, Any]):
    found = await hosts(**changed)
    assert found.level is CheckLevel.WARNING
    assert host in found.detail


async def test_same_hosts_give_no_warning():
    assert (await hosts(display_name="Acme")).level is CheckLevel.OK
