"""A receipt in COSE is checked offline; what is wrong with one is named by its kind."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from evergrant.audit.cose import verify_cose
from evergrant.audit.notes import VerifierKey
from evergrant.audit.receipts import Flaw, ReceiptError

from evergrant_server.audit import merkle_tree
from evergrant_server.audit.checkpoints.notes import HEADS_LOG, LogSigner, TreeName, cbor, cose_receipt
from evergrant_server.audit.merkle_tree import Frontier
from tests.unit.client.audit.test_notes import LOG, LOG_KEY, vkey
from tests.unit.client.audit.test_receipts import BODIES, INDEX, LEAVES, SHARD, TENANT, head_text, path_of

KEY = VerifierKey.parse(str(vkey(LOG, LOG_KEY)))
SIGNER = LogSigner(LOG, LOG_KEY)


def receipt(
    signer: LogSigner = SIGNER,
    tenant: str = TENANT,
    shard: str = SHARD,
    head: str = "",
    beside: dict[str, Any] | None = None,
) -> bytes:
    """As the server makes one, of record 17 of 40, whose head is the third of five."""
    frontier, name, public = Frontier().appended(LEAVES), TreeName(tenant, shard), signer.public
    head = head or head_text(tenant, shard, frontier)
    heads = ["a\n", "b\n", head, "d\n", "e\n"]
    leaves = [merkle_tree.leaf_hash(text.encode()) for text in heads]
    outer = signer.sign(HEADS_LOG, Frontier().appended(leaves)).cose
    of_head = cose_receipt(signer.name, public, HEADS_LOG, 5, 2, path_of(leaves, 2), outer, {})
    headers = {
        "evergrant-body": BODIES[INDEX].encode(),
        "evergrant-leaf": LEAVES[INDEX],
        "evergrant-head": [head.encode(), of_head],
        **(beside or {}),
    }
    inner = signer.sign(name, frontier).cose
    return cose_receipt(signer.name, public, name, 40, INDEX, path_of(LEAVES, INDEX), inner, headers)


def test_a_receipt_shows_its_record():
    verified = verify_cose(receipt(), KEY, tenant=TENANT, record=f"{SHARD}/{INDEX}")
    assert (verified.tenant, verified.shard, verified.index, verified.log_size) == (TENANT, SHARD, INDEX, 5)
    assert verified.body is not None
    assert verified.body["object"] == f"con_{INDEX}"
    erased = verify_cose(receipt(beside={"evergrant-body": None}), KEY)
    assert (erased.body, erased.index) == (None, INDEX)


OTHER = Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32)
AHEAD = head_text(TENANT, SHARD, Frontier().appended(LEAVES[:-1]))
CASES: dict[str, tuple[Callable[[], bytes], Flaw]] = {
    "no COSE": (lambda: b"\xd2\x84", Flaw.FORMAT),
    "another tag": (lambda: b"\xd1" + receipt()[1:], Flaw.FORMAT),
    "bytes behind it": (lambda: receipt() + b"\x00", Flaw.FORMAT),
    "nested without end": (lambda: b"\xd2" + b"\x81" * 5_000, Flaw.FORMAT),
    "a length without end": (lambda: b"\xd2\x84\x5b" + b"\xff" * 8, Flaw.FORMAT),
    "no leaf": (lambda: receipt(beside={"evergrant-leaf": b"short"}), Flaw.FORMAT),
    "no head": (lambda: receipt(beside={"evergrant-head": []}), Flaw.FORMAT),
    "another body": (lambda: receipt(beside={"evergrant-body": BODIES[3].encode()}), Flaw.BODY),
    "another leaf": (
        lambda: receipt(beside={"evergrant-body": BODIES[3].encode(), "evergrant-leaf": LEAVES[3]}),
        Flaw.SIGNATURE,
    ),
    "another installation": (
        lambda: receipt(LogSigner("another.example/audit", LOG_KEY)),
        Flaw.INSTALLATION,
    ),
    "another tenant": (lambda: receipt(tenant="other"), Flaw.TENANT),
    "another shard": (lambda: receipt(shard="main-4"), Flaw.RECORD),
    "a shard renamed": (lambda: receipt().replace(b"main-3", b"main-4"), Flaw.RECORD),
    "another key": (lambda: receipt(LogSigner(LOG, OTHER)), Flaw.SIGNATURE),
    "another head": (lambda: receipt(head=AHEAD), Flaw.HEAD),
    "no head's text": (lambda: receipt(head="nonsense"), Flaw.HEAD),
}


@pytest.mark.parametrize("case", CASES)
def test_a_receipt_of_something_else_is_refused_by_its_kind(case: str):
    made, kind = CASES[case]
    with pytest.raises(ReceiptError) as caught:
        verify_cose(made(), KEY, tenant=TENANT, record=f"{SHARD}/{INDEX}")
    assert caught.value.kind == kind, caught.value


def test_a_renamed_shard_isnt_what_was_signed():
    renamed = receipt().replace(b"main-3", b"main-4")
    with pytest.raises(ReceiptError) as caught:
        verify_cose(renamed, KEY)
    assert caught.value.kind == Flaw.SIGNATURE


def test_every_byte_of_a_receipt_counts_or_is_refused():
    """But for the unprotected headers that nobody reads: there are none."""
    raw = receipt()
    for place in range(0, len(raw), 7):
        changed = bytes([*raw[:place], raw[place] ^ 1, *raw[place + 1 :]])
        with pytest.raises(ReceiptError):
            verify_cose(changed, KEY, tenant=TENANT, record=f"{SHARD}/{INDEX}")


def test_a_key_of_the_same_name_has_another_id():
    other = replace(KEY, public=OTHER.public_key().public_bytes_raw())
    with pytest.raises(ReceiptError) as caught:
        verify_cose(receipt(), other)
    assert caught.value.kind == Flaw.SIGNATURE
    assert cbor([other.id]) != cbor([KEY.id])
