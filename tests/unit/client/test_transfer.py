"""Files of grants and the commands for them: lines by number, no token anywhere, the right exit status."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from evergrant import BadRequest, ProtocolError
from evergrant.transfer_files import (
    LONGEST_LINE,
    InvalidLine,
    LineDecrypter,
    ParsedLine,
    generate_key_pair,
    read_lines,
    read_public_key,
)
from joserfc import jwe, jwk

from tests.unit.client.conftest import Caller
from tests.unit.client.scripted_evergrant import ScriptedEvergrant, ScriptedResponse, problem
from tests.unit.client.test_command import command

CANARY = "canary-token-0123"


def outcome(index: int, **changes: Any) -> dict[str, Any]:
    good = {"index": index, "status": "imported", "connection_id": f"con_{index}", "verification": "verified"}
    return good | changes


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
        (b"x" * (LONGEST_LINE + 5), "line_too_long"),
        (b"x" * (LONGEST_LINE * 3), "line_too_long"),
        (b"a.b.c.d.e", "sealed"),
    ],
)
def test_a_bad_line_is_named_by_number_and_the_next_is_read(raw: bytes, code: str):
    good = json.dumps({"access_token": CANARY}).encode()
    content = b"\xef\xbb\xbf" + good + b"\r\n\n" + raw + b"\n" + good
    first, bad, last = read_lines(io.BytesIO(content))
    assert isinstance(first, ParsedLine)
    assert isinstance(bad, InvalidLine)
    assert isinstance(last, ParsedLine)
    assert (first.number, bad.number, bad.code, last.number) == (1, 3, code, 4)
    assert last.end == len(content)
    assert CANARY not in repr([first, bad, last])


def test_a_sealed_line_opens_with_its_key_alone(tmp_path: Path):
    private, public = generate_key_pair()
    mine, others = tmp_path / "mine", tmp_path / "others"
    mine.write_text(private)
    others.write_text(generate_key_pair()[0])
    header = {"alg": "ECDH-ES+A256KW", "enc": "A256GCM"}
    text = json.dumps({"access_token": CANARY}).encode()
    key = jwk.OKPKey.import_key(json.loads(public))
    sealed = jwe.encrypt_compact(header, text, key, algorithms=["ECDH-ES+A256KW", "A256GCM"]).encode()
    (line,) = read_lines(io.BytesIO(sealed), LineDecrypter(mine))
    assert isinstance(line, ParsedLine)
    assert line.item == {"access_token": CANARY}
    for broken, path in ((sealed, others), (sealed[:-6] + b"AAAAAA", mine), (b"a.b.c.d.e", mine)):
        (line,) = read_lines(io.BytesIO(broken), LineDecrypter(path))
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


async def test_items_go_in_requests_of_fifty(caller: Caller, evergrant: ScriptedEvergrant):
    sizes = (50, 50, 20)
    evergrant.script(
        "POST /v1/connections/import", *(outcomes(*(outcome(n) for n in range(size))) for size in sizes)
    )
    found = await caller.list("import_connections", ({"subject": str(n)} for n in range(120)), verify=False)
    assert [it.index for it in found] == list(range(120))
    assert [len(it.body["items"]) for it in evergrant.seen] == list(sizes)
    assert evergrant.seen[0].body["verify"] is False


async def test_another_number_of_outcomes_is_another_server(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script("POST /v1/connections/import", outcomes(outcome(0)))
    with pytest.raises(ProtocolError):
        await caller.list("import_connections", [{}, {}])


async def test_the_command_reports_by_line_and_exits_with_1(evergrant: ScriptedEvergrant, tmp_path: Path):
    file = tmp_path / "grants.jsonl"
    file.write_text(f'{{"access_token": "{CANARY}"}}\n{{{CANARY}\n{{}}\n{{}}\n')
    evergrant.script(
        "POST /v1/connections/import",
        outcomes(
            outcome(0),
            outcome(1, status="invalid", verification=None, code="not_found", detail="no\x1b such"),
            outcome(2, verification="failed", code="grant_rejected", detail="refused"),
        ),
    )
    ended = await command(evergrant, "import", str(file))
    assert ended.status == 1
    assert f"{file}:2: not_json" in ended.err
    assert f"{file}:3: not_found: no  such" in ended.err
    assert f"{file}:4: grant_rejected" in ended.err
    assert CANARY not in ended.err + ended.out
    machine = await command(evergrant, "import", str(file), "-o", "json")
    report = json.loads(machine.out)
    assert [it["line"] for it in report["failures"]] == [2, 3, 4]
    assert (report["imported"], report["invalid"], report["failed"]) == (2, 2, 1)


async def test_what_stops_an_import_says_where_to_go_on(evergrant: ScriptedEvergrant, tmp_path: Path):
    file = tmp_path / "grants.jsonl"
    file.write_text("{}\n" * 60)
    denied = problem(403, "Denied", "not_permitted")
    evergrant.script("POST /v1/connections/import", outcomes(*(outcome(n) for n in range(50))), denied)
    ended = await command(evergrant, "import", str(file))
    assert ended.status == 1
    assert "stopped after line 50; run it again to go on" in ended.err
    assert "not_permitted" in ended.err


@pytest.mark.parametrize(
    "arguments", [("import", "absent.jsonl"), ("export", "--to", "absent", "--out", "x")]
)
async def test_a_missing_file_is_one_line(evergrant: ScriptedEvergrant, arguments: tuple[str, ...]):
    ended = await command(evergrant, *arguments)
    assert (ended.status, len(ended.err.splitlines())) == (1, 1)
    assert evergrant.seen == []


async def test_half_an_export_is_no_file(evergrant: ScriptedEvergrant, tmp_path: Path):
    private, public, out = (tmp_path / name for name in ("private", "public", "out"))
    assert (await command(evergrant, "export-key", str(private), str(public))).status == 0
    assert private.stat().st_mode & 0o777 == 0o600
    again = await command(evergrant, "export-key", str(private), str(public))
    assert (again.status, "exists" in again.err) == (1, True)
    export = {"id": "exp_1", "status": "running", "exported": 0, "skipped": 0, "key": "k"}
    page = ScriptedResponse(200, "a.b.c.d.e", {"X-Evergrant-Exported": "2"}, "text/plain")
    evergrant.script("POST /v1/connections/export", ScriptedResponse(202, export))
    evergrant.script(
        "GET /v1/connections/export",
        ScriptedResponse(202, export),
        page,
        problem(404, "BadRequest", "not_found"),
    )
    ended = await command(evergrant, "export", "--to", str(public), "--out", str(out))
    assert (ended.status, out.exists()) == (1, False)
    assert "d" not in evergrant.seen[0].body["public_key"]
