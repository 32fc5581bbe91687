"""A receipt is checked offline; what is wrong with one is named by its kind and its record."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from evergrant.audit.notes import COSIGNATURE, Checkpoint, Note, VerifierKey, cosign
from evergrant.audit.receipts import Flaw, Receipt, ReceiptError

from evergrant_server.audit import merkle_tree
from evergrant_server.audit.checkpoints.notes import HEADS_LOG, LogSigner, TreeName, log_proof
from evergrant_server.audit.merkle_tree import Frontier, TileSlice
from tests.unit.client.audit.test_notes import LOG, LOG_KEY, WITNESS, WITNESS_KEY, vkey

TENANT, SHARD, INDEX = "acme", "main-3", 17
BODIES = [f'{{"v":2,"object":"con_{number}","s":"{number:032x}"}}' for number in range(40)]
LEAVES = [merkle_tree.leaf_hash(body.encode()) for body in BODIES]
LOG_VKEY = vkey(LOG, LOG_KEY)
SIGNER = LogSigner(LOG, LOG_KEY)


def path_of(leaves: list[bytes], index: int) -> list[bytes]:
    def read(part: TileSlice) -> bytes:
        return b"".join(leaves[part.first : part.first + part.count])

    return merkle_tree.roots(merkle_tree.inclusion_path(index, len(leaves)), read)


def head_text(tenant: str, shard: str, frontier: Frontier) -> str:
    root = Checkpoint.parse(SIGNER.sign(HEADS_LOG, frontier).note).note.text.split("\n")[2]
    return (
        f"evergrant-head/v1\n{tenant}\n{shard}\n{frontier.size}\n{root}\n2026-12-01T00:00:00.000000+00:00\n"
    )


def members(signer: LogSigner = SIGNER, tenant: str = TENANT, shard: str = SHARD) -> dict[str, Any]:
    """What the server answers with, for record 17 of 40, whose head is the third of five."""
    frontier = Frontier().appended(LEAVES)
    heads = [head_text(tenant, name, frontier) for name in ("main-0", "main-1", shard, "main-4", "main-5")]
    head_leaves = [merkle_tree.leaf_hash(head.encode()) for head in heads]
    note = signer.sign(TreeName(tenant, shard), frontier).note
    outer = signer.sign(HEADS_LOG, Frontier().appended(head_leaves)).note
    return {
        "format": "evergrant-receipt/v1",
        "tenant": tenant,
        "record": f"{shard}/{INDEX}",
        "body": BODIES[INDEX],
        "leaf": _base64(LEAVES[INDEX]),
        "proof": log_proof(INDEX, path_of(LEAVES, INDEX), note),
        "head": heads[2],
        "head_proof": log_proof(2, path_of(head_leaves, 2), outer),
    }


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def parsed(**changes: Any) -> Receipt:
    return Receipt.parse(json.dumps(members() | changes))


def test_a_receipt_shows_its_record():
    verified = parsed().verified(LOG_VKEY, tenant=TENANT, record=f"{SHARD}/{INDEX}")
    assert (verified.tenant, verified.shard, verified.index) == (TENANT, SHARD, INDEX)
    assert verified.body == json.loads(BODIES[INDEX])
    assert (verified.log_size, verified.witnesses) == (5, {})


def test_an_erased_record_still_has_its_place():
    assert parsed(body=None).verified(LOG_VKEY).body is None


def witnessed(key: VerifierKey | None = None) -> dict[str, Any]:
    made = members()
    head, _, note = made["head_proof"].partition("\n\n")
    line = cosign(Checkpoint.parse(note), WITNESS, WITNESS_KEY, 1_800_000_000)
    return made | {"head_proof": f"{head}\n\n{note}{line}"}


def test_a_witness_has_signed_the_checkpoint():
    key = vkey(WITNESS, WITNESS_KEY, COSIGNATURE)
    receipt = Receipt.parse(json.dumps(witnessed()))
    assert receipt.verified(LOG_VKEY, witnesses=[key], least=1).witnesses == {WITNESS: 1_800_000_000}
    with pytest.raises(ReceiptError, match="0 of 1 have signed") as error:
        parsed().verified(LOG_VKEY, witnesses=[key], least=1)
    assert error.value.kind is Flaw.WITNESS


OTHER = LogSigner("another.example/audit", LOG_KEY)
FORGER = LogSigner(LOG, WITNESS_KEY)
Edit = Callable[[dict[str, Any]], dict[str, Any]]


def edited(name: str, before: str, after: str) -> Edit:
    def edit(made: dict[str, Any]) -> dict[str, Any]:
        assert before in made[name]
        return made | {name: made[name].replace(before, after, 1)}

    return edit


def _other_shards(made: dict[str, Any]) -> dict[str, Any]:
    return made | {"proof": members(shard="main-2")["proof"]}


@pytest.mark.parametrize(
    ("edit", "kind", "why"),
    [
        (edited("body", "con_17", "con_18"), Flaw.BODY, "another one"),
        (edited("proof", "index 17", "index 16"), Flaw.RECORD, "main-3/16"),
        (lambda made: made | {"record": "main-3/16", "proof": made["proof"].replace("17", "16")},
         Flaw.PROOF, "another record at 16"),
        (lambda made: made | {"leaf": _base64(LEAVES[16]), "body": None}, Flaw.PROOF, "another record"),
        (edited("proof", "\n40\n", "\n41\n"), Flaw.SIGNATURE, "is wrong"),
        (edited("head_proof", "\n5\n", "\n6\n"), Flaw.SIGNATURE, "is wrong"),
        (edited("head", "\n40\n", "\n41\n"), Flaw.HEAD, "isn't the one"),
        (edited("head", "2026", "2027"), Flaw.HEAD_PROOF, "another record at 2"),
        (edited("head", "main-3", "main-2"), Flaw.HEAD, "is of acme/main-2"),
        (edited("head", "evergrant-head/v1", "evergrant-head/v2"), Flaw.HEAD, "a head is"),
        (_other_shards, Flaw.INSTALLATION, "acme/main-2"),
        (lambda made: made | {"tenant": "globex"}, Flaw.INSTALLATION, "globex"),
        (lambda _: members(OTHER), Flaw.INSTALLATION, "another.example"),
        (lambda _: members(FORGER), Flaw.SIGNATURE, "hasn't signed"),
        (lambda made: made | {"head_proof": members(FORGER)["head_proof"]}, Flaw.SIGNATURE, "hasn't signed"),
        (edited("head_proof", "index 2", "index 3"), Flaw.HEAD_PROOF, "another record at 3"),
        (edited("head_proof", "index 2", "index 7"), Flaw.HEAD_PROOF, "none with the index 7"),
        (edited("proof", "c2sp.org", "c2sp.net"), Flaw.PROOF, "begins with"),
        (edited("leaf", "=", ""), Flaw.FORMAT, "no hash"),
        (lambda made: made | {"format": "evergrant-receipt/v2"}, Flaw.FORMAT, "of the format"),
        (lambda made: made | {"record": "main-3"}, Flaw.FORMAT, "member"),
        (lambda made: made | {"record": "main-3/017"}, Flaw.FORMAT, "member"),
        (lambda made: {name: value for name, value in made.items() if name != "head"}, Flaw.FORMAT, "member"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(edit: Edit, kind: Flaw, why: str):
    with pytest.raises(ReceiptError, match=why) as error:
        Receipt.parse(json.dumps(edit(members()))).verified(LOG_VKEY)
    assert error.value.kind is kind
    if kind is not Flaw.FORMAT:
        assert error.value.record.rpartition("/")[0] == SHARD


@pytest.mark.parametrize("text", ["", "[]", "null", '{"format":1}', "[" * 100_000])
def test_what_is_no_receipt(text: str):
    with pytest.raises(ReceiptError, match="format:"):
        Receipt.parse(text)


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        ({"tenant": "globex"}, Flaw.TENANT),
        ({"record": "main-3/18"}, Flaw.RECORD),
        ({"record": "main-4/17"}, Flaw.RECORD),
    ],
)
def test_a_receipt_of_something_else_is_refused(asked: dict[str, Any], kind: Flaw):
    with pytest.raises(ReceiptError) as error:
        parsed().verified(LOG_VKEY, **asked)
    assert error.value.kind is kind


def test_a_signature_of_a_shard_is_none_of_the_log():
    """The key is the same: the name in the signed text is what keeps them apart."""
    made = members()
    note = Note.parse(made["proof"].partition("\n\n")[2])
    assert note.signed_by([LOG_VKEY]) == {}


def test_a_checkpoint_extends_a_kept_one():
    leaves = LEAVES[:9]

    def checkpoint(size: int, tampered: bool = False) -> Checkpoint:
        kept = [merkle_tree.leaf_hash(b"x"), *leaves[1:size]] if tampered else leaves[:size]
        return Checkpoint.parse(SIGNER.sign(HEADS_LOG, Frontier().appended(kept)).note)

    def read(part: TileSlice) -> bytes:
        return b"".join(leaves[part.first : part.first + part.count])

    path = [_base64(value) for value in merkle_tree.roots(merkle_tree.consistency_path(4, 9), read)]
    checkpoint(9).require_extends(checkpoint(4), path)
    with pytest.raises(ValueError, match="another root"):
        checkpoint(9).require_extends(checkpoint(4, tampered=True), path)
    with pytest.raises(ValueError, match="another root"):
        checkpoint(9, tampered=True).require_extends(checkpoint(4), path)
    with pytest.raises(ValueError, match="the newer tree has 4"):
        checkpoint(4).require_extends(checkpoint(9), [])
