"""Errors of a definition, unsupported fields, refresh rules and quirks."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from docs.generate import DOCS
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Rotation
from providers.definition.parsing import parse_yaml_definition
from providers.definition.registry import CATALOG, Registry
from providers.definition.schema import ProviderSpec
from providers.quirks import QUIRKS, reshaped_first_reply
from tests.fakes.patience import PATIENCE_S
from tests.unit.providers.samples import fails, spec_like

MINIMAL = """
name: acme
display_name: Acme
auth_modes: [authorization_code]
authorization_endpoint: https://acme.example/authorize
token_endpoint: https://acme.example/token
"""


def problem(text: str) -> str:
    with fails(ErrorCode.INVALID_REQUEST) as raised:
        parse_yaml_definition(text, "acme.yaml")
    assert raised.value.detail.isprintable()
    assert len(raised.value.detail) < 4000
    return raised.value.detail


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("acces_params: {}", "is no field; docs/reference/provider.schema.json lists the fields"),
        ("token_endpiont: x", "token_endpiont: is no field; token_endpoint is one"),
        ("expires_in_path: x", "expires_in_path: is no field by itself; response.expires_in_path is one"),
        ("response: {pkce: required}", "response.pkce: is no field of response; pkce is one by itself"),
        ("response: {acess_token_path: x}", "is no field; response.access_token_path is one"),
        ("template_params: {sub: {patern: x}}", "is no field; template_params.sub.pattern is one"),
        ("post_auth: [{urls: x}]", "post_auth.0.urls: is no field; post_auth.0.url is one"),
        ("extends: ../../secrets", "extends"),
        ("extends: nobody", "extends: 'nobody' is no definition of the catalogue"),
        ("extends: jira", "extends: jira extends atlassian; extend that one"),
        ("pkce: off", "(it is a boolean: in YAML on, off, yes and no need quotes)"),
        ("default_scopes: [2024-01-01]", "default_scopes.0: must be text, which needs quotes here in YAML"),
        ("default_scopes: read", "default_scopes: must be a list: [one, another]"),
        ("response: yes", "response: must be a mapping of fields"),
        ("auth_modes: [password]", "auth_modes"),
        ("auth_modes: []", "auth_modes: must not be empty"),
        ("pkce: plain", "pkce"),
        ("pkce: [1]", "(it is an array)"),
        ("token_endpoint: http://a.example/t", "must start with https:// (it is a string of 18 characters)"),
        ("token_endpoint: https://a@acme.example/token", "token_endpoint"),
        ("token_endpoint: https://{host}/token", "token_endpoint: uses ['host']"),
        ("token_endpoint: https://{/token", "brace"),
        ("template_params: {sub: {enum: [a], pattern: '^a$'}}", "exactly one"),
        ("template_params: {sub: {enum: [a], default: b}}", "default"),
        ("rotation_grace_s: 5", "rotation_grace_s: needs"),
        ("status_field: result", "status_field: status_field and ok_values go together"),
        ("terminal_error_codes: [x]\nretryable_error_codes: [x]", "retryable_error_codes: has x"),
        ("quirks: [no_such_hook]", "no_such_hook"),
        ("refresh_token_in: header", "same header"),
        ("name: Acme Inc", "name"),
        ("scope_separator: ', '", "scope_separator"),
        ("error_rules: [{path: ok, not_in: [1], values: [2]}]", "more than one of not_in"),
        ("token_params: {'a b': x}", "token_params"),
    ],
)
def test_error_names_file_and_field(lines: str, said: str) -> None:
    replaced = {line.split(":")[0] for line in lines.splitlines()}
    kept = [line for line in MINIMAL.splitlines() if line.split(":")[0] not in replaced]
    detail = problem("\n".join([*kept, lines]))
    assert said in detail
    assert "acme.yaml" in detail


DURATIONS = [name for name in ProviderSpec.model_fields if name.endswith("_s")]


@pytest.mark.parametrize("seconds", ["3153600001", "1.0e+30", "1" + 30 * "0", "-1"])
@pytest.mark.parametrize("field", DURATIONS)
def test_duration_above_a_century_refused(field: str, seconds: str) -> None:
    assert field in problem(f"{MINIMAL}refresh_rotates: true\n{field}: {seconds}\n")
    parse_yaml_definition(f"{MINIMAL}refresh_rotates: true\n{field}: 3153600000\n", "acme.yaml")


def test_list_with_one_invalid_item_is_not_also_called_empty() -> None:
    assert "empty" not in problem(MINIMAL.replace("[authorization_code]", "[code]"))


def test_missing_endpoint_named_unless_discovered() -> None:
    text = "name: acme\ndisplay_name: Acme\nauth_modes: [authorization_code]\n"
    assert "authorization_endpoint: is missing" in problem(text)
    assert parse_yaml_definition(text + "discovery: true\n", "acme.yaml").discovery


def test_file_name_must_equal_the_provider(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(MINIMAL)
    with pytest.raises(Failure, match="the file is called 'other'"):
        Registry.load(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"auth_modes": ["client_credentials"]},
        {
            "token_endpoint": "https://{host}/token",
            "template_params": {"host": {"pattern": "^[a-z]+$", "source": "post_auth_lookup"}},
        },
    ],
)
def test_unsupported_field_refused_at_use(fields: dict[str, Any]) -> None:
    spec = spec_like(**fields)
    with fails(ErrorCode.INVALID_REQUEST) as raised:
        spec.require_usable()
    assert raised.value.context["provider"] == "acme"


def test_unsupported_field_blocks_only_the_flows_that_use_it() -> None:
    both = ["implicit", "client_credentials"]
    spec = spec_like(auth_modes=both, dpop=True, min_refresh_age_s=570)
    spec.require_usable(Flow.CLIENT_CREDENTIALS)
    spec.require_any_flow()
    with pytest.raises(Failure, match="an implicit connection: dpop"):
        spec.require_usable(Flow.IMPLICIT)
    with pytest.raises(Failure, match="a jwt bearer connection: auth_modes"):
        spec.require_usable(Flow.JWT_BEARER)
    with pytest.raises(Failure, match="speaks oauth1"):
        spec_like(auth_modes=["oauth1"]).require_usable()
    spec_like(auth_modes=["oauth1"]).require_any_flow()


@pytest.mark.parametrize(
    ("fields", "rotation", "grace", "idle"),
    [
        ({}, Rotation.UNKNOWN, 0, None),
        ({"refresh_rotates": False}, Rotation.NONE, 0, None),
        ({"refresh_rotates": True}, Rotation.STRICT, 0, None),
        ({"refresh_rotates": True, "rotation_grace_s": 60}, Rotation.GRACE, 60, None),
        ({"refresh_rotates": True, "rotation_grace_s": 0}, Rotation.STRICT, 0, None),
        ({"refresh_rotates": True, "rotation_grace_s": "unlimited"}, Rotation.NONE, 0, None),
        ({"refresh_rotates": True, "refresh_token_lifetime_s": 99}, Rotation.STRICT, 0, 99),
        ({"refresh_rotates": False, "refresh_token_lifetime_s": 99}, Rotation.NONE, 0, None),
        ({"refresh_rotates": False, "refresh_token_idle_s": 9}, Rotation.NONE, 0, 9),
    ],
)
def test_refresh_rules(fields: dict[str, Any], rotation: Rotation, grace: float, idle: float | None) -> None:
    rules = spec_like(**fields).refresh_rules()
    assert (rules.rotation, rules.grace_s, rules.refresh_token_idle_s) == (rotation, grace, idle)


def test_token_under_authed_user() -> None:
    def reshaped(data: Any) -> Any:
        return json.loads(reshaped_first_reply(["token_under_authed_user"], json.dumps(data).encode()))

    lifted = reshaped({"ok": True, "authed_user": {"access_token": "user", "expires_in": 9}})
    assert lifted["access_token"] == "user"
    assert "access_token" not in lifted["authed_user"], "lifted, and not a second chain as well"
    bot = {"access_token": "bot", "authed_user": {"access_token": "user"}}
    for kept in (bot, {"authed_user": {"id": "U1"}}, {"authed_user": "x"}, []):
        assert reshaped(kept) == kept


def test_every_quirk_is_used_by_a_definition() -> None:
    assert {name for spec in Registry.load().all() for name in spec.quirks} == set(QUIRKS)


# --- the JSON Schema for editors accepts the catalogue and rejects mistakes ----------------------

CHECK = Path(sys.executable).parent / "check-jsonschema"
SCHEMA = DOCS / "reference" / "provider.schema.json"
MISTAKES = ("acess_token: x", "pkce: plain", "auth_modes: [password]", "response: {expires: x}", "version: 0")


def test_json_schema_says_what_a_field_means() -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    told = (
        schema["properties"]["assumed_lifetime_s"],
        schema["$defs"]["ResponseSpec"]["properties"]["scope_path"],
    )
    assert [field["description"] for field in told] == [
        "used when a reply has no expiry",
        "of a text or a list",
    ]


def test_json_schema_accepts_the_catalogue_and_rejects_mistakes(tmp_path: Path) -> None:
    files = []
    for number, line in enumerate(MISTAKES):
        kept = [kept for kept in MINIMAL.splitlines() if kept.split(":")[0] != line.split(":")[0]]
        files.append(tmp_path / f"mistake{number}.yaml")
        files[-1].write_text("\n".join([*kept, line]))
    command = [CHECK, "--schemafile", SCHEMA, "-o", "json", *sorted(CATALOG.glob("*.yaml")), *files]
    told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert told.returncode == 1
    refused = {Path(it["filename"]) for it in json.loads(told.stdout)["errors"]}
    assert refused == set(files), told.stdout


def test_an_optional_parameter_is_in_no_url() -> None:
    host = {"host": {"enum": ["eu"], "optional": True}}
    with pytest.raises(ValueError, match="optional"):
        spec_like(token_endpoint="https://{host}.acme.example/token", template_params=host)
    with pytest.raises(ValueError, match="default"):
        spec_like(template_params={"host": {"enum": ["eu"], "optional": True, "default": "eu"}})
