"""`evergrant audit export` goes on with a file that was cut; `audit verify` checks it line by line."""

import json
from pathlib import Path

import pytest

from tests.unit.client.audit.test_exports import an_export
from tests.unit.client.audit.test_receipts import LOG_VKEY, TENANT
from tests.unit.client.conftest import Command
from tests.unit.client.scripted_evergrant import ScriptedEvergrant, ScriptedResponse

ROUTE = "GET /v1/audit/export"


def lines_of(*values: object) -> str:
    return "".join(f"{json.dumps(value, separators=(',', ':'))}\n" for value in values)


def page(number: int, following: str | None) -> str:
    record = {"shard": "main-0", "index": number, "hash": "00", "body": "{}"}
    return lines_of(record, {"page": {"tenant": TENANT, "at": "2026-05-04T03:02:01Z", "next": following}})


def answer(content: str) -> ScriptedResponse:
    return ScriptedResponse(200, content, content_type="application/jsonl")


def test_pages_are_fetched_to_the_end(command: Command, evergrant: ScriptedEvergrant, tmp_path: Path):
    file = tmp_path / "log.jsonl"
    evergrant.script(ROUTE, answer(page(0, "c-1")), answer(page(1, None)))
    ended = command("audit", "export", str(file), "--histories", "-o", "json")
    assert json.loads(ended.out) == {"file": str(file), "pages": 2, "bytes": file.stat().st_size}
    assert file.read_text(encoding="utf-8") == page(0, "c-1") + page(1, None)
    assert [made.query.get("cursor") for made in evergrant.requests] == [None, "c-1"]
    assert {made.query["histories"] for made in evergrant.requests} == {"true"}
    assert file.stat().st_mode & 0o777 == 0o600
    command("audit", "export", str(file))
    assert len(evergrant.requests) == 2, "a whole file is left alone"


@pytest.mark.parametrize("cut", [0, 1, 30, len(page(1, "c-2")) - 1])
def test_a_file_that_was_cut_is_gone_on_with_behind_its_last_whole_page(
    command: Command, evergrant: ScriptedEvergrant, tmp_path: Path, cut: int
):
    file = tmp_path / "log.jsonl"
    file.write_text(page(0, "c-1") + page(1, "c-2")[:cut], encoding="utf-8")
    evergrant.script(ROUTE, answer(page(1, "c-2")), answer(page(2, None)))
    assert command("audit", "export", str(file)).status == 0
    assert file.read_text(encoding="utf-8") == page(0, "c-1") + page(1, "c-2") + page(2, None)
    assert [made.query.get("cursor") for made in evergrant.requests] == ["c-1", "c-2"]


def test_a_file_that_is_no_export_is_left_as_it_is(
    command: Command, evergrant: ScriptedEvergrant, tmp_path: Path
):
    file = tmp_path / "letter.txt"
    file.write_text("Dear Ann,\n", encoding="utf-8")
    ended = command("audit", "export", str(file))
    assert (ended.status, file.read_text(encoding="utf-8")) == (1, "Dear Ann,\n")
    assert "is no export of the audit log" in ended.err
    assert evergrant.requests == []


def test_an_export_is_verified_and_what_is_wrong_is_named(command: Command, tmp_path: Path):
    file = tmp_path / "log.jsonl"
    lines = an_export()
    file.write_text(lines_of(*lines), encoding="utf-8")
    shown = json.loads(command("audit", "verify", str(file), "--log", str(LOG_VKEY), "-o", "json").out)
    assert (shown["ok"], shown["records"], shown["proven"]) == (True, 48, 40)
    edited = next(line for line in lines if line.get("index") == 12)
    edited["body"] = '{"v":2}'
    file.write_text(lines_of(*lines), encoding="utf-8")
    refused = command("audit", "verify", str(file), "--log", str(LOG_VKEY))
    assert (refused.status, "export_body" in refused.err, "main-3/12" in refused.err) == (1, True, True)
    file.write_text(lines_of(*an_export()[:-1]), encoding="utf-8")
    assert "export_cut" in command("audit", "verify", str(file), "--log", str(LOG_VKEY)).err
