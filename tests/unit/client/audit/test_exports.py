"""An export is checked offline; what is wrong with it is named by its kind and its record."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from evergrant.audit.exports import ExportVerifier, VerifiedExport
from evergrant.audit.receipts import Flaw, ReceiptError

from evergrant_server.audit.merkle_tree import leaf_hash
from tests.unit.client.audit.test_receipts import BODIES, LOG_VKEY, SHARD, TENANT, members

Line = dict[str, Any]


def record(shard: str, index: int, body: str | None, hashed: str | None = None) -> Line:
    leaf = hashed or leaf_hash((body or "").encode()).hex()
    return {"shard": shard, "index": index, "hash": leaf, "body": body}


def chain(count: int, shard: str = "main") -> tuple[list[Line], str]:
    """Records of a hash chain of before the trees, and the hash of the last."""
    lines: list[Line] = []
    previous = "0" * 64
    for number in range(1, count + 1):
        body = json.dumps({"format": 1, "previous_hash": previous, "seq": number})
        previous = hashlib.sha256(body.encode()).hexdigest()
        lines.append(record(shard, number, body, previous))
    return lines, previous


def an_export() -> list[Line]:
    """40 records whose head is signed, one of them erased, and 3 that are newer; behind a closed chain."""
    lines, last_hash = chain(5)
    ended = {"v": 2, "action": "audit.chain_ended", "object": "main", "detail": {}}
    ended["detail"] = {"count": 5, "last_hash": last_hash}
    tree = [record(SHARD, number, body) for number, body in enumerate(BODIES)]
    tree[7] |= {"body": None}
    newer = [json.dumps({"v": 2, "s": str(number)}) for number in range(2)]
    rest = [
        record(SHARD, len(BODIES) + number, body) for number, body in enumerate((json.dumps(ended), *newer))
    ]
    page: Line = {"page": {"tenant": TENANT, "at": "2026-05-04T03:02:01Z", "next": "more"}}
    end: Line = {"page": {**page["page"], "next": None}}
    run: Line = {"history": {"run_id": "1", "events": []}}
    return [*lines, page, {"receipt": members()}, *tree, *rest, page, run, end]


def verified(lines: list[Line], tenant: str | None = None) -> VerifiedExport:
    verifier = ExportVerifier(LOG_VKEY, tenant=tenant)
    for line in lines:
        verifier.read(json.dumps(line).encode() + b"\n")
    return verifier.verified()


def test_a_whole_export_shows_every_record_and_how_many_a_head_covers():
    shown = verified(an_export(), TENANT)
    assert shown == VerifiedExport(
        tenant=TENANT, shards=2, records=48, proven=40, erased=1, histories=1, whole=True
    )
    assert not verified(an_export()[:-1]).whole


def at(index: int, shard: str = SHARD) -> Callable[[list[Line]], int]:
    """Where the record with this number stands."""
    return lambda lines: next(
        place for place, line in enumerate(lines) if (line.get("shard"), line.get("index")) == (shard, index)
    )


def edited(number: int, /, **change: Any) -> Callable[[list[Line]], None]:
    def change_it(lines: list[Line]) -> None:
        place = at(number)(lines)
        lines[place] = lines[place] | change

    return change_it


def forged(index: int) -> Callable[[list[Line]], None]:
    """Another body, with its own hash."""
    body = '{"v":2,"object":"con_forged"}'
    return edited(index, body=body, hash=leaf_hash(body.encode()).hex())


def without(index: int, shard: str = SHARD) -> Callable[[list[Line]], None]:
    return lambda lines: lines.pop(at(index, shard)(lines)) and None


def swapped(lines: list[Line]) -> None:
    """Two bodies with their hashes change places."""
    first, second = at(3)(lines), at(4)(lines)
    for name in ("body", "hash"):
        lines[first][name], lines[second][name] = lines[second][name], lines[first][name]


def cut(lines: list[Line]) -> None:
    """The last records of the shard are gone."""
    place = at(35)(lines)
    del lines[place : at(42)(lines) + 1]


def rewritten_chain(lines: list[Line]) -> None:
    """A shorter chain that is whole by itself."""
    del lines[:5]
    lines[:0] = chain(4)[0]


@pytest.mark.parametrize(
    ("tamper", "kind", "named"),
    [
        (edited(12, body='{"v":2}'), Flaw.BODY, f"{SHARD}/12"),
        (forged(12), Flaw.PROOF, f"{SHARD}/39"),
        (edited(12, hash="zz"), Flaw.FORMAT, f"{SHARD}/12"),
        (edited(12, body=None, hash="00" * 32), Flaw.PROOF, f"{SHARD}/39"),
        (without(12), Flaw.RECORD, f"{SHARD}/13"),
        (without(0), Flaw.RECORD, f"{SHARD}/1"),
        (swapped, Flaw.PROOF, f"{SHARD}/39"),
        (cut, Flaw.RECORD, f"{SHARD}/35"),
        (without(3, "main"), Flaw.RECORD, "main/4"),
        (rewritten_chain, Flaw.PROOF, "main/4"),
        (lambda lines: lines.append({"page": {"tenant": TENANT, "next": None}}), Flaw.FORMAT, ""),
        (lambda lines: lines.insert(0, {"made": "up"}), Flaw.FORMAT, ""),
        (lambda lines: lines.insert(-3, record("main-0", 0, "{}")), Flaw.RECORD, "main-0/0"),
        (edited(12, index="12"), Flaw.FORMAT, ""),
    ],
)
def test_a_tampered_export_is_named_by_kind_and_record(
    tamper: Callable[[list[Line]], None], kind: Flaw, named: str
):
    lines = [dict(line) for line in an_export()]
    tamper(lines)
    with pytest.raises(ReceiptError) as refused:
        verified(lines)
    assert (refused.value.kind, refused.value.record) == (kind, named)


def test_an_export_of_another_tenant_or_with_another_ones_receipt_is_refused():
    with pytest.raises(ReceiptError, match="it is of the tenant acme, not of other"):
        verified(an_export(), "other")
    lines = an_export()
    place = next(number for number, line in enumerate(lines) if "receipt" in line)
    lines[place] = {"receipt": members(tenant="other")}
    with pytest.raises(ReceiptError) as refused:
        verified(lines)
    assert refused.value.kind is Flaw.TENANT


def test_a_line_that_was_cut_is_no_line():
    verifier = ExportVerifier(LOG_VKEY)
    with pytest.raises(ReceiptError, match="is none of an export"):
        verifier.read(b'{"shard":"main","ind')
