"""What is given on the command line: names that are almost right, units, secrets with more around them."""

from pathlib import Path

import pytest
from evergrant import App
from evergrant.api.models import Permit
from evergrant.cli.arguments import SERVER_COMMANDS

from evergrant_server.cli.app import app as server_app
from tests.unit.client.conftest import Command
from tests.unit.client.scripted_evergrant import (
    LINK,
    ScriptedEvergrant,
    ScriptedResponse,
    an_integration,
    connection,
    example,
    lease,
    page,
    problem,
)

NO_SUCH = problem(404, "BadRequest", "not_found", detail="There is no such thing.", repair="Check the name.")
DENIED = problem(403, "Denied", "not_permitted")
PUT_CRM = ("integrations", "put", "crm", "--provider", "github", "--client-id", "c")


def test_a_connection_that_is_over_is_begun_anew_by_a_line_to_copy(
    command: Command, evergrant: ScriptedEvergrant, tmp_path: Path
):
    (tmp_path / "app.key").write_text("evg_app")
    evergrant.script("POST /v1/lease", problem(409, "ReconnectNeeded", "connection_revoked"))
    told = command("token", "crm", "alice", "--api-key-file", str(tmp_path / "app.key")).err
    line = f"evergrant connect crm alice --open --wait --api-key-file {tmp_path / 'app.key'})\n"
    assert told.endswith(line)


def test_an_admin_is_told_which_name_was_meant(command: Command, evergrant: ScriptedEvergrant):
    evergrant.script("GET /v1/integrations", page(an_integration(name="crm")))
    evergrant.script("GET /v1/apps", page(example(App, name="report")))
    evergrant.script("POST /v1/connections", NO_SUCH)
    told = command("connect", "crn", "alice").err
    assert told == "evergrant: not_found: there is no integration crn (Did you mean crm?)\n"
    evergrant.script("GET /v1/apps/reprot/permits/crm", NO_SUCH)
    evergrant.script("PUT /v1/apps/reprot/permits/crm", NO_SUCH)
    told = command("apps", "permit", "reprot", "crm", "--subject", "alice").err
    assert told == "evergrant: not_found: there is no app reprot (Did you mean report?)\n"
    evergrant.script("GET /v1/apps/zz", NO_SUCH)
    assert "evergrant apps ls lists them" in command("apps", "get", "zz").err


def test_an_app_is_told_the_permit_that_an_admin_may_give(
    command: Command, evergrant: ScriptedEvergrant, tmp_path: Path
):
    evergrant.script("GET /v1/integrations", DENIED, page())
    evergrant.script("POST /v1/connections", NO_SUCH)
    for _ in range(2):
        told = command("connect", "crm", "bob").err
        assert "an admin gives it: " in told
        assert "evergrant apps permit APP crm --subject bob" in told
    (tmp_path / "report.key").write_text("evg_app")
    told = command("connect", "crm", "bob", "--api-key-file", str(tmp_path / "report.key")).err
    assert "evergrant apps permit report crm --subject bob" in told


def test_what_an_app_does_not_have_is_named(command: Command, evergrant: ScriptedEvergrant):
    evergrant.script("GET /v1/apps", page(example(App, name="report")))
    evergrant.script("GET /v1/apps/report/permits/crm", NO_SUCH)
    told = command("permits", "get", "report", "crm").err
    assert (
        told == "evergrant: not_found: report has no permit crm (evergrant permits ls report lists them.)\n"
    )
    evergrant.script("DELETE /v1/apps/report/keys/key_1", NO_SUCH)
    assert "evergrant apps keys ls report lists" in command("apps", "keys", "revoke", "report", "key_1").err


def test_a_name_in_place_of_an_id_is_told_what_an_id_is(command: Command, evergrant: ScriptedEvergrant):
    evergrant.script("GET /v1/connections/crm", NO_SUCH)
    assert "begins with con_: evergrant connections ls" in command("connections", "get", "crm").err


def test_a_permit_for_an_integration_that_is_not_there_says_so(
    command: Command, evergrant: ScriptedEvergrant
):
    evergrant.script("GET /v1/integrations", page(an_integration(name="crm")))
    evergrant.script("GET /v1/apps/report/permits/crmm", NO_SUCH)
    evergrant.script("PUT /v1/apps/report/permits/crmm", ScriptedResponse(201, example(Permit)))
    ended = command("apps", "permit", "report", "crmm", "--subject", "alice")
    assert ended.status == 0
    assert ended.err == "evergrant: there is no integration crmm yet; did you mean crm?\n"


def test_a_code_that_does_not_count_says_when_one_does(command: Command, evergrant: ScriptedEvergrant):
    evergrant.script("POST /v1/connections/con_1/confirm", NO_SUCH)
    told = command("connections", "confirm", "con_1", "abc", "alice").err
    assert "it counts once" in told
    assert "connect again" in told


def test_the_scope_above_a_ceiling_is_named(command: Command, evergrant: ScriptedEvergrant):
    evergrant.script("POST /v1/lease", problem(403, "Denied", "scope_not_permitted", scopes="admin"))
    assert "the reason: admin (" in command("token", "crm", "alice").err


def test_a_filter_that_finds_nothing_names_a_typo(command: Command, evergrant: ScriptedEvergrant):
    evergrant.script("GET /v1/connections", page())
    evergrant.script("GET /v1/integrations", page(an_integration(name="crm")))
    told = command("connections", "ls", "--integration", "crmm").err
    assert told == "evergrant: there is no integration crmm yet; did you mean crm?\n"


def test_who_an_app_is_has_another_command(command: Command, evergrant: ScriptedEvergrant):
    evergrant.script("GET /v1/sessions/current", NO_SUCH)
    assert "evergrant apps ls" in command("whoami").err


def test_scopes_are_given_one_by_one(command: Command, evergrant: ScriptedEvergrant):
    for given in ("repo,user:email", "repo user:email"):
        ended = command(*PUT_CRM, "--scope", given)
        assert (ended.status, ended.err.count("\n")) == (2, 1)
        assert "--scope repo --scope user:email" in ended.err
    assert evergrant.requests == []


def test_a_time_may_have_its_unit(command: Command, evergrant: ScriptedEvergrant):
    evergrant.script("POST /v1/lease", lease())
    command("token", "crm", "alice", "--min-ttl", "2m")
    assert evergrant.requests[0].body["min_ttl"] == 120
    ended = command("connect", "crm", "alice", "--timeout", "soon")
    assert ended.status == 2
    assert "10m" in ended.err


@pytest.mark.parametrize(
    ("content", "more"),
    [
        ('client_secret="canary"', "its name"),
        ("SECRET: canary", "its name"),
        ('"canary"', "quotes"),
        ('{"web": {"client_secret": "canary"}}', "JSON"),
        ("canary\nanother", "several words or lines"),
    ],
)
def test_a_secret_file_holds_the_secret_alone(
    command: Command, evergrant: ScriptedEvergrant, tmp_path: Path, content: str, more: str
):
    file = tmp_path / "secret.txt"
    file.write_text(content)
    ended = command(*PUT_CRM, "--client-secret-file", str(file))
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert f"{file} holds {more} beside the secret" in ended.err
    assert "canary" not in ended.err
    assert evergrant.requests == []


def test_usage_names_the_help_that_is_about_it(command: Command):
    assert "(See evergrant connections revoke --help.)" in command("connections", "revoke", "con_1").err
    assert "1 more than the command takes" in command("providers", "propose", "acme", "acme.yaml").err


def test_a_value_of_another_kind_is_told_its_form(command: Command):
    put = ("permits", "put", "report", "x", "--integration", "crm", "--action", "token")
    assert "write a date with its zone, such as 2027-01-01" in command(*put, "--expires", "tomorrow").err
    assert "--lease-limit: write a whole number" in command("apps", "put", "web", "--lease-limit", "many").err


def test_a_connection_without_a_grant_names_the_command_for_a_link(
    command: Command, evergrant: ScriptedEvergrant
):
    needed = problem(409, "ReconnectNeeded", "consent_required", repair="Send the subject to connect_url.")
    evergrant.script("POST /v1/connections/con_1/refresh", needed)
    assert "evergrant connections reauthorize con_1" in command("connections", "refresh", "con_1").err


def test_a_command_of_the_server_is_named(command: Command):
    assert "python -m evergrant_server serve --port 1" in command("serve", "--port", "1").err
    assert "make doctor" in command("doctor").err
    assert set(SERVER_COMMANDS) <= set(server_app)


def test_a_definition_may_be_yaml(command: Command, evergrant: ScriptedEvergrant, tmp_path: Path):
    file = tmp_path / "acme.yaml"
    file.write_text("name: acme\n  token_endpoint: x\n")
    told = command("providers", "propose", str(file)).err
    assert f"{file}, line 2, column 17: is neither YAML nor JSON" in told
    file.write_text("- name: acme\n")
    assert "no object" in command("providers", "propose", str(file)).err


def test_a_key_file_that_is_there_already_is_kept(
    command: Command, evergrant: ScriptedEvergrant, tmp_path: Path
):
    file = tmp_path / "report.key"
    file.write_text("evg_before")
    told = command("apps", "key", "report", "--out", str(file)).err
    assert f"{file} is there already" in told
    assert f"rm {file}" in told
    assert evergrant.requests == []


def test_what_takes_its_time_says_why(command: Command, evergrant: ScriptedEvergrant):
    down = problem(503, "ProviderUnavailable", "provider_unreachable", detail="crm is down", retry_after=2.1)
    evergrant.script("GET /v1/connections/con_1", down, ScriptedResponse(200, connection()))
    ended = command("connections", "get", "con_1")
    assert ended.status == 0
    assert "evergrant: trying for up to 30 s: provider_unreachable: crm is down" in ended.err
    assert LINK not in ended.err
