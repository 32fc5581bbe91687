"""`providers explain` and `providers check --sources`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evergrant_server.core.errors import Failure
from providers.definition.registry import Registry
from providers.tools.catalogue_report import catalogue_grounds
from providers.tools.explanation import explain
from tests.fakes.patience import PATIENCE_S

ROOT = Path(__file__).parents[4]


def test_a_reply_is_explained_with_its_rule_its_file_and_whose_turn_it_is() -> None:
    body = b'{"error": "invalid_grant", "error_description": "AADSTS50196: a loop"}'
    told = explain(Registry.load(), "outlook", "refresh", 400, [], body)
    assert (told.code, told.repairer) == ("provider_rate_limited", "time")
    assert told.by.startswith('providers/catalog/microsoft.yaml: error_rules: {"pattern": "^(?s:AADSTS50196')
    assert json.loads(told.reply) == {"status": 400, "json": json.loads(body)}
    assert "AADSTS50196" in str(told)


@pytest.mark.parametrize(
    ("name", "at", "status", "headers", "body", "code", "by", "follows"),
    [
        (
            "imgur",
            "refresh",
            400,
            [],
            b'{"data": {"error": "Invalid refresh token."}}',
            "grant_rejected",
            "providers/catalog/imgur.yaml: terminal_error_codes",
            "asked to consent again",
        ),
        (
            "jira",
            "refresh",
            403,
            [],
            b'{"error_description": "refresh_token is invalid."}',
            "grant_rejected",
            "providers/catalog/atlassian.yaml: error_rules",
            "asked to consent again",
        ),
        (
            "gmail",
            "refresh",
            401,
            [],
            b'{"error": "deleted_client"}',
            "client_rejected",
            "providers/catalog/google.yaml: client_error_codes",
            "admin is told",
        ),
        ("generic", "refresh", 503, ["Retry-After: 30"], b"", "provider_error", "RFC 9110", "tried again"),
        ("generic", "refresh", 400, [], b"", "provider_error", "nothing", "asked again within a minute"),
        (
            "generic",
            "refresh",
            400,
            [],
            b"error=invalid_request&error_description=Token+has+been+revoked",
            "grant_rejected",
            "the token or code is over",
            "asked to consent again",
        ),
        (
            "generic",
            "exchange",
            400,
            [],
            b"error=invalid_grant",
            "grant_rejected",
            "names",
            "the consent has failed",
        ),
        (
            "generic",
            "device",
            400,
            [],
            b"error=authorization_pending",
            "pending",
            "RFC 8628",
            "the poll goes on",
        ),
        (
            "generic",
            "device",
            400,
            [],
            b"error=access_denied",
            "consent_denied",
            "this request",
            "the consent has failed",
        ),
        (
            "generic",
            "revocation",
            400,
            [],
            b"error=invalid_grant",
            "grant_rejected",
            "names",
            "counts as gone",
        ),
        ("generic", "revocation", 200, [], b"", "success", "no error", "the grant is over"),
    ],
)
def test_what_follows_a_reply_depends_on_what_was_requested(
    name: str, at: Any, status: int, headers: list[str], body: bytes, code: str, by: str, follows: str
) -> None:
    told = explain(Registry.load(), name, at, status, headers, body)
    assert told.code == code
    assert by in told.by
    assert follows in told.follows


def test_an_explanation_names_what_is_wrong_with_a_request_for_it() -> None:
    with pytest.raises(Failure, match="similar: outlook"):
        explain(Registry.load(), "outlok", "refresh", 400, [], b"")
    with pytest.raises(Failure, match="NAME: VALUE"):
        explain(Registry.load(), "outlook", "refresh", 400, ["Retry-After 3"], b"")
    with pytest.raises(Failure, match="from 100 to 599"):
        explain(Registry.load(), "outlook", "refresh", 4000, [], b"")


def test_the_command_explains_and_lists_what_entries_rest_on(tmp_path: Path) -> None:
    (tmp_path / "reply").write_text('{"error": "invalid_client"}')
    command = [sys.executable, "-m", "evergrant_server", "providers"]
    explained = subprocess.run(
        [*command, "explain", "generic", "--status", "401", "--body", str(tmp_path / "reply"), "-o", "json"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=PATIENCE_S,
    )
    assert json.loads(explained.stdout)["repairer"] == "integration_admin"
    grounds = {entry.provider: entry for entry in catalogue_grounds()}
    assert len(grounds) > 300
    assert grounds["microsoft"].sourced_refusals > 50
    assert "error_rules" in grounds["microsoft"].by_field
    assert grounds["microsoft"].changed is None or grounds["microsoft"].changed >= "2026-01-01"
