"""Import and export: files of grants, and the commands for them."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from evergrant import BadRequest, ProtocolError
from evergrant.api.imports import ImportOutcome
from evergrant.api.models import Export
from evergrant.grant_files import (
    MAX_LINE_BYTES,
    InvalidLine,
    LineDecrypter,
    ParsedLine,
    generate_key_pair,
    read_lines,
    read_public_key,
)
from joserfc import jwe, jwk

from tests.unit.client.conftest import Caller, Command
from tests.unit.client.scripted_evergrant import ScriptedEvergrant, ScriptedResponse, example, problem

CANARY = "canary-token-0123"
IMPORT = "POST /v1/connections/import"


def outcome(index: int, **changes: Any) -> dict[str, Any]:
    members = {"index": index, "status": "imported", "verification": "verified"}
    return example(ImportOutcome, **(members | changes))


def outcomes(*items: dict[str, Any]) -> ScriptedResponse:
    return ScriptedResponse(200, {"items": list(items)})


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"{broken", "not_json"),
        (b'{"a": NaN}', "not_json"),
        (b"[" * 5000, "not_json"),
        (b"[]", "not_an_object"),
        (b'"canary-token-0123"', "not_an_object"),
        (b'{"a": 1, "a": 2}', "duplicate_member"),
        (b'{"a": {"b": 1, "b": 2}}', "duplicate_member"),
        (b'{"a": "\xff"}', "not_utf8"),
        (b"x" * (MAX_LINE_BYTES + 5), "line_too_long"),
        (b"x" * (MAX_LINE_BYTES * 3), "line_too_long"),
        (b"a.b.c.d.e", "sealed"),
    ],
)
def test_an_invalid_line_is_named_by_number_and_the_next_is_read(raw: bytes, code: str):
    good = json.dumps({"access_token": CANARY}).encode()
    content = b"\xef\xbb\xbf" + good + b"\r\n\n" + raw + b"\n" + good
    first, invalid, last = read_lines(io.BytesIO(content))
    assert isinstance(first, ParsedLine)
    assert isinstance(invalid, InvalidLine)
    assert isinstance(last, ParsedLine)
    assert (first.number, invalid.number, invalid.code, last.number) == (1, 3, code, 4)
    assert last.end == len(content)
    assert CANARY not in repr([first, invalid, last])


def test_a_sealed_line_opens_with_its_key_alone(tmp_path: Path):
    private, public = generate_key_pair()
    own, other = tmp_path / "own", tmp_path / "other"
    own.write_text(private)
    other.write_text(generate_key_pair()[0])
    header = {"alg": "ECDH-ES+A256KW", "enc": "A256GCM"}
    text = json.dumps({"access_token": CANARY}).encode()
    key = jwk.OKPKey.import_key(json.loads(public))
    sealed = jwe.encrypt_compact(header, text, key, algorithms=["ECDH-ES+A256KW", "A256GCM"]).encode()
    (line,) = read_lines(io.BytesIO(sealed), LineDecrypter(own))
    assert isinstance(line, ParsedLine)
    assert line.item == {"access_token": CANARY}
    for content, path in ((sealed, other), (sealed[:-6] + b"AAAAAA", own), (b"a.b.c.d.e", own)):
        (line,) = read_lines(io.BytesIO(content), LineDecrypter(path))
        assert isinstance(line, InvalidLine)
        assert line.code == "not_for_this_key"


def test_a_private_key_is_never_sent(tmp_path: Path):
    file = tmp_path / "key"
    private, _ = generate_key_pair()
    file.write_text(private)
    assert "d" not in read_public_key(file)
    file.write_bytes(jwk.OKPKey.import_key(json.loads(private)).as_pem(private=True))
    with pytest.raises(BadRequest, match="private"):
        read_public_key(file)
    file.write_bytes(jwk.ECKey.generate_key("P-384").as_pem(private=True))
    with pytest.raises(BadRequest, match="no private X25519"):
        LineDecrypter(file)


async def test_items_are_sent_in_batches_of_fifty(caller: Caller, evergrant: ScriptedEvergrant):
    sizes = (50, 50, 20)
    evergrant.script(IMPORT, *(outcomes(*(outcome(n) for n in range(size))) for size in sizes))
    found = await caller.list("import_connections", ({"subject": str(n)} for n in range(120)), verify=False)
    assert [each.index for each in found] == list(range(120))
    assert [len(sent.body["items"]) for sent in evergrant.requests] == list(sizes)
    assert evergrant.requests[0].body["verify"] is False


async def test_a_missing_outcome_is_a_protocol_error(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script(IMPORT, outcomes(outcome(0)))
    with pytest.raises(ProtocolError):
        await caller.list("import_connections", [{}, {}])


def test_import_reports_each_line_and_exits_with_1(
    command: Command, evergrant: ScriptedEvergrant, tmp_path: Path
):
    file = tmp_path / "grants.jsonl"
    file.write_text(f'{{"access_token": "{CANARY}"}}\n{{{CANARY}\n{{}}\n{{}}\n')
    evergrant.script(
        IMPORT,
        outcomes(
            outcome(0),
            outcome(1, status="invalid", verification=None, code="not_found", detail="no\x1b such"),
            outcome(2, verification="failed", code="grant_rejected", detail="refused"),
        ),
    )
    ended = command("import", str(file))
    assert ended.status == 1
    assert f"{file}:2: not_json" in ended.err
    assert f"{file}:3: not_found: no  such" in ended.err
    assert f"{file}:4: grant_rejected" in ended.err
    assert CANARY not in ended.err + ended.out
    report = json.loads(command("import", str(file), "-o", "json").out)
    assert [failure["line"] for failure in report["failures"]] == [2, 3, 4]
    assert (report["imported"], report["invalid"], report["failed"]) == (2, 2, 1)


def test_an_interrupted_import_names_its_last_line(
    command: Command, evergrant: ScriptedEvergrant, tmp_path: Path
):
    file = tmp_path / "grants.jsonl"
    file.write_text("{}\n" * 60)
    denied = problem(403, "Denied", "not_permitted")
    evergrant.script(IMPORT, outcomes(*(outcome(n) for n in range(50))), denied)
    ended = command("import", str(file))
    assert ended.status == 1
    assert "stopped after line 50; run it again to go on" in ended.err
    assert "not_permitted" in ended.err


def test_a_failed_export_leaves_no_file(command: Command, evergrant: ScriptedEvergrant, tmp_path: Path):
    private, public, out = (tmp_path / name for name in ("private", "public", "out"))
    assert command("export-key", str(private), str(public)).status == 0
    assert private.stat().st_mode & 0o777 == 0o600
    again = command("export-key", str(private), str(public))
    assert (again.status, "exists" in again.err) == (1, True)
    export = example(Export, id="exp_1", status="running")
    line = ScriptedResponse(200, "a.b.c.d.e", {"X-Evergrant-Exported": "2"}, "text/plain")
    running, missing = ScriptedResponse(202, export), problem(404, "BadRequest", "not_found")
    evergrant.script("POST /v1/connections/export", running)
    evergrant.script("GET /v1/connections/export", running, line, missing)
    ended = command("export", "--to", str(public), "--out", str(out))
    assert (ended.status, out.exists()) == (1, False)
    assert "d" not in evergrant.requests[0].body["public_key"]
