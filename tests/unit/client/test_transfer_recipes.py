"""The recipes of docs/guide/moving-in.md, on files of the shapes that those systems give out."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evergrant_server.api.transfer.models import ImportItem

ROOT = Path(__file__).parents[3]


def run(recipe: str, file: Path, *more: str) -> tuple[list[dict[str, Any]], str]:
    """Run a converter as its page says; every line must be an item that the API takes."""
    command = [sys.executable, "-m", f"examples.migrations.{recipe}", str(file), *more]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    items = [json.loads(line) for line in ended.stdout.splitlines()]
    for item in items:
        ImportItem.model_validate(item)
    return items, ended.stderr


def test_nango(tmp_path: Path):
    common = {"provider_config_key": "hubspot-prod", "environment_id": 1, "deleted_at": None}
    held = {
        "type": "OAUTH2",
        "access_token": "at-1",
        "refresh_token": "rt-1",
        "expires_at": "2030-01-02T03:04:05.000Z",
        "raw": {"token_type": "bearer", "scope": "contacts oauth"},
    }
    rows = [
        common | {"connection_id": "user-1", "credentials": held},
        common | {"connection_id": "user-2", "credentials": json.dumps(held | {"expires_at": None})},
        common | {"connection_id": "user-3", "credentials": {"type": "API_KEY", "apiKey": "secret-k"}},
        common | {"connection_id": "user-4", "credentials": {"type": "OAUTH2", "encrypted_credentials": "x"}},
        common | {"connection_id": "user-5", "credentials": held, "deleted_at": "2029-01-01"},
        {"unexpected": "secret-k"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    items, said = run("nango", file, "--integration", "hubspot-prod=crm")
    assert items[0] == {
        "integration": "crm",
        "subject": "user-1",
        "access_token": "at-1",
        "refresh_token": "rt-1",
        "scopes": ["contacts", "oauth"],
        "expires_at": "2030-01-02T03:04:05+00:00",
    }
    assert [it.get("expires") for it in items] == [None, "unknown"]
    assert [line.split(":")[0] for line in said.splitlines()] == ["row 3", "row 4", "row 5", "row 6"]
    assert "secret-k" not in said


def test_auth0(tmp_path: Path):
    identity = {
        "connection": "google-oauth2",
        "provider": "google-oauth2",
        "user_id": "1001",
        "isSocial": True,
    }
    rows = [
        {
            "user_id": "google-oauth2|1001",
            "email": "a@example.com",
            "identities": [
                identity | {"access_token": "ya-1", "refresh_token": "1//rt", "expires_in": 3599},
                {"connection": "Username-Password-Authentication", "provider": "auth0", "user_id": "5"},
            ],
        },
        {"user_id": "google-oauth2|1002", "identities": [identity | {"access_token": "ya-2"}]},
        {"user_id": "auth0|5", "identities": []},
    ]
    file = tmp_path / "users.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    items, said = run("auth0", file, "--integration", "google-oauth2=google")
    assert items == [
        {
            "integration": "google",
            "subject": "google-oauth2|1001",
            "access_token": "ya-1",
            "refresh_token": "1//rt",
            "expires": "unknown",
            "metadata": {"auth0_identity": "google-oauth2|1001"},
        }
    ]
    assert len(said.splitlines()) == 2


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
def test_a_table_of_your_own(tmp_path: Path, expires_at: str, expected: dict[str, str]):
    file = tmp_path / "tokens.csv"
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(
            ["provider", "user_id", "access_token", "refresh_token", "expires_at", "scope", "account"]
        )
        writer.writerow(["hubspot", 7, "at,1", 'rt"1', expires_at, "a,b c", "sales"])
        writer.writerow(["hubspot", 8, "at-2", "", "", "", ""])
        writer.writerow(["hubspot", 9, "at-3", "rt-3", "next week", "", ""])
    items, said = run("table", file, "--integration", "hubspot=crm")
    assert items == [
        {
            "integration": "crm",
            "subject": "7",
            "label": "sales",
            "access_token": "at,1",
            "refresh_token": 'rt"1',
            "scopes": ["a", "b", "c"],
            **expected,
        }
    ]
    assert [line.split(":")[0] for line in said.splitlines()] == ["row 2", "row 3"]
