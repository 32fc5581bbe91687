"""Moving in: rows of Nango, Auth0 and a table as items, by the command. Shapes and sources: `shapes/`."""

import json
from pathlib import Path
from typing import Any

import pytest
from evergrant.api.imports import ImportOutcome
from evergrant.cli.commands import transfer

from evergrant_server.api.transfer.models import ImportItem
from tests.unit.client.conftest import Command, Ended
from tests.unit.client.scripted_evergrant import ScriptedEvergrant, ScriptedResponse, example

IMPORT = "POST /v1/connections/import"
SHAPES = Path(__file__).parent / "shapes"


class Imports:
    """The command on a file, against a server that would import what isn't refused by a test."""

    def __init__(self, command: Command, evergrant: ScriptedEvergrant, folder: Path) -> None:
        self._command, self._evergrant, self.file = command, evergrant, folder / "rows"
        self.items: list[dict[str, Any]] = []

    def write(self, *rows: Any) -> None:
        self.file.write_text("\n".join(it if isinstance(it, str) else json.dumps(it) for it in rows) + "\n")

    def run(self, *options: str, made: int = 0, code: str | None = None) -> Ended:
        """`made` items are expected; the server answers each with `code`."""
        status = "would_import" if code is None else "invalid"
        sizes = [50] * (made // 50) + [made % 50]
        answers = [[_outcome(n, status=status, code=code) for n in range(size)] for size in sizes]
        self._evergrant.script(IMPORT, *(ScriptedResponse(200, {"items": it}) for it in answers))
        before = len(self._evergrant.requests)
        ended = self._command("import", str(self.file), *options)
        self.items = [it for sent in self._evergrant.requests[before:] for it in sent.body["items"]]
        for item in self.items:
            ImportItem.model_validate(item)  # the API accepts it
        assert "canary" not in ended.out + ended.err
        return ended

    def report(self, *options: str, made: int = 0) -> dict[str, Any]:
        ended = self.run(*options, "-o", "json", made=made)
        return {**json.loads(ended.out), "status": ended.status}

    def refused(self, *options: str, made: int = 0) -> list[tuple[int, str]]:
        return [(it["line"], it["code"]) for it in self.report(*options, made=made)["failures"]]


def _outcome(index: int, **changes: Any) -> dict[str, Any]:
    given = {"index": index, "status": "would_import", "verification": None, "code": None, **changes}
    return example(ImportOutcome, **given)


def shape(name: str) -> dict[str, Any]:
    return json.loads((SHAPES / f"{name}.json").read_text())


@pytest.fixture
def imports(command: Command, evergrant: ScriptedEvergrant, tmp_path: Path) -> Imports:
    return Imports(command, evergrant, tmp_path)


@pytest.fixture
def key(tmp_path: Path) -> str:
    """A file with NANGO_ENCRYPTION_KEY."""
    (tmp_path / "nango.key").write_text(shape("nango")["encryption_key"] + "\n")
    return str(tmp_path / "nango.key")


def test_nango_rows_are_opened_with_their_key(imports: Imports, key: str):
    imports.write(*shape("nango")["table"])
    options = ("--from", "nango", "--key", key, "--integration", "hubspot-prod=crm", "--dry-run")
    report = imports.report(*options, made=2)
    until = {"expires_at": "2030-01-02T03:04:05+00:00"}
    assert imports.items == [
        {
            **{"integration": "crm", "subject": "alice", "scopes": ["contacts", "oauth"], **until},
            **{"access_token": "canary-access-0001", "refresh_token": "canary-refresh-0001"},
        },
        {
            **{"integration": "crm", "subject": "bob", "scopes": ["contacts", "tickets"], **until},
            **{"access_token": "canary-access-0002", "refresh_token": "canary-refresh-0002"},
        },
    ]
    assert [(it["line"], it["code"]) for it in report["failures"]] == [
        (6, "other_client"),
        (7, "other_environment"),
    ]
    assert (report["status"], report["would_import"], report["invalid"], report["skipped"]) == (1, 2, 2, 3)
    assert {reason.split(":")[0] for reason in report["skipped_because"]} == {
        "deleted in Nango",
        "not OAuth 2 (API_KEY)",
        "client credentials",
    }


def test_encrypted_rows_without_their_key_are_refused_one_by_one(imports: Imports, tmp_path: Path):
    imports.write(*shape("nango")["table"][:2])
    assert imports.refused("--from", "nango", made=1) == [(1, "sealed")]
    (tmp_path / "other").write_text("A" * 43 + "=")
    assert imports.refused("--from", "nango", "--key", str(tmp_path / "other"), made=1) == [
        (1, "not_for_this_key")
    ]
    (tmp_path / "other").write_text("canary")
    ended = imports.run("--from", "nango", "--key", str(tmp_path / "other"))
    assert (ended.status, "32 bytes" in ended.err) == (1, True)


def test_nango_connections_of_its_api_are_named_by_their_end_user(imports: Imports):
    imports.write(*shape("nango")["api"])
    (refused,) = imports.refused("--from", "nango", "--subject", "end_user.id", made=1)
    assert refused == (2, "no_credentials")
    assert imports.items[0]["subject"] == "u-9"


def test_a_rehearsal_says_that_no_line_has_a_refresh_token(imports: Imports):
    """Nango's API gives them only with refresh_token=true."""
    row = shape("nango")["api"][0]
    del row["credentials"]["refresh_token"]
    imports.write(row)
    ended = imports.run("--from", "nango", "--dry-run", made=1)
    assert "no line of hubspot-prod has a refresh token" in ended.err


@pytest.mark.parametrize("form", ["page", "array", "lines", "pages on lines", "indented"])
def test_auth0_identities_become_items(imports: Imports, form: str):
    page = shape("auth0")["page"]
    users = page["users"]
    whole = {"page": [page], "array": [users], "lines": users, "pages on lines": [users[:2], users[2:]]}
    imports.write(*whole.get(form, [json.dumps(page, indent=2)]))
    report = imports.report("--from", "auth0", "--integration", "google-oauth2=google", made=2)
    named = [(it["subject"], it["access_token"], it["expires"]) for it in imports.items]
    assert named == [(f"google-oauth2|{n}", f"canary-access-{n}", "unknown") for n in (1001, 1003)]
    assert (report["skipped"], [it["code"] for it in report["failures"]]) == (4, ["duplicate"])
    assert {it.split(":")[0] for it in report["skipped_because"]} == {
        "no refresh token",
        "no tokens",
        "OAuth 1.0a",
    }


def test_a_subject_that_a_user_lacks_is_refused(imports: Imports):
    imports.write(*shape("auth0")["page"]["users"])
    options = ("--from", "auth0", "--integration", "google", "--subject", "app_metadata.id")
    assert imports.refused(*options, made=1) == [(5, "no_subject"), (5, "no_subject")]
    assert imports.items[0]["subject"] == "u-9"


@pytest.mark.parametrize(
    ("expires_at", "expected"),
    [
        ("2030-01-02 03:04:05+00", {"expires_at": "2030-01-02T03:04:05+00:00"}),
        ("2030-01-02 03:04:05", {"expires_at": "2030-01-02T03:04:05+00:00"}),
        ("1893553445", {"expires_at": "2030-01-02T03:04:05+00:00"}),
        ("1893553445000", {"expires_at": "2030-01-02T03:04:05+00:00"}),
        ("", {"expires": "unknown"}),
    ],
)
def test_a_table_becomes_items(imports: Imports, expires_at: str, expected: dict[str, str]):
    imports.write(
        "provider,user_id,access_token,refresh_token,expires_at,scope,account",
        f'hubspot,7,"canary,1","canary""1",{expires_at},"a,b c",sales',
        "hubspot,8,,canary-2,,,",
        "hubspot,9,canary-3,canary-3,canary next week,,",
        "hubspot,10,canary-4",
        "HubSpot,11,canary-5,canary-5,,,",
        "hubspot,,canary-6,canary-6,,,",
        "hubspot,7,canary-7,canary-7,,,sales",
    )
    refused = imports.refused("--from", "table", "--integration", "hubspot=crm", made=1)
    names = {"integration": "crm", "subject": "7", "label": "sales", "scopes": ["a", "b", "c"]}
    assert imports.items == [names | {"access_token": "canary,1", "refresh_token": 'canary"1'} | expected]
    assert refused == [
        (3, "no_access_token"),
        (4, "bad_expiry"),
        (5, "wrong_shape"),
        (6, "integration_unnamed"),
        (7, "no_subject"),
        (8, "duplicate"),
    ]


def test_a_tables_columns_are_named(imports: Imports):
    imports.file.write_bytes(
        "\ufeffmail;token;até\nalice;canary-1;\nbob;canary-2;\udcff\n".encode("utf-8", "surrogateescape")
    )
    options = ("--from", "table", "--integration", "crm", "--subject", "mail")
    ended = imports.run(*options)
    assert (ended.status, "--column access_token=…" in ended.err) == (1, True)
    assert imports.items == []
    assert imports.refused(*options, "--column", "access_token=token", made=1) == [(3, "not_utf8")]
    assert imports.items == [
        {"integration": "crm", "subject": "alice", "access_token": "canary-1", "expires": "unknown"}
    ]


def test_a_rehearsal_explains_what_would_be_made(imports: Imports):
    imports.write(
        "integration,subject,access_token,refresh_token,scope",
        "crm,alice,canary-1,canary-2,read write",
        "crm,bob,canary-3,,",
        "crm,carol,canary-4,canary-5,4f9a8c7b6e5d4c3b2a1908f7e6d5c4b3",
    )
    ended = imports.run("--from", "table", "--dry-run", made=3)
    (row,) = (line.split() for line in ended.out.splitlines() if line.startswith("crm "))
    assert row == ["crm", "3", "0", "0", "2", "3", "read", "write", "…", "(the", "integration's)"]
    assert "integration or provider" in ended.out  # which column each member is read from


def test_a_rehearsal_names_the_missing_integration(imports: Imports):
    imports.write("integration,subject,access_token", "jira,alice,canary-1", "jira,bob,canary-2")
    ended = imports.run("--from", "table", "--dry-run", made=2, code="not_found")
    assert "no integration jira is here (lines: 2)" in ended.err
    assert "--integration jira=OURS" in ended.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--integration", "a=b"), "give --from"),
        (("--from", "nango", "--column", "a=b"), "for a table"),
        (("--from", "table", "--key", "x"), "not for table"),
        (("--from", "table", "--integration", "a", "--integration", "b=c"), "THEIRS=OURS"),
        (("--from", "table", "--column", "secret=b"), "the members are"),
        (("--from", "table", "--column", "subject"), "NAME=VALUE"),
    ],
)
def test_an_option_that_does_not_fit_is_explained(imports: Imports, options: tuple[str, ...], said: str):
    imports.write("integration,subject,access_token")
    ended = imports.run(*options)
    assert (ended.status, imports.items) == (1, [])
    assert said in ended.err


@pytest.mark.parametrize("content", ["[{", "{\n", "[1, 2]", '"canary"', '{"users": "canary"}\n[]', "\x00"])
@pytest.mark.parametrize("source", ["nango", "auth0"])
def test_a_file_of_another_kind_is_refused_and_not_quoted(imports: Imports, source: str, content: str):
    imports.file.write_text(content)
    assert {code for _, code in imports.refused("--from", source)} <= {
        "not_json",
        "not_an_object",
        "wrong_shape",
    }
    assert imports.items == []


def test_lines_after_a_broken_first_one_keep_their_numbers(imports: Imports):
    imports.write("{broken", *shape("nango")["api"])
    assert imports.refused("--from", "nango", made=1) == [(1, "not_json"), (3, "no_credentials")]


def test_progress_is_a_line_where_no_terminal_is(imports: Imports, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transfer, "LINE_EVERY_S", 0.0)
    grant = {"integration": "crm", "access_token": "canary", "never_expires": True}
    imports.write(*(grant | {"subject": str(number)} for number in range(51)))
    ended = imports.run(made=51)
    assert "evergrant: 50 lines, " in ended.err
    assert " a second, " in ended.err
