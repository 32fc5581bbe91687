"""Checkpoints are kept by a witness, a bucket with object lock and a timestamp authority; late ones alarm."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from evergrant.audit.notes import COSIGNATURE, PLAIN, VerifierKey
from evergrant.audit.receipts import Receipt
from evergrant.audit.witness import Witness, last_signed, serving
from moto.server import ThreadedMotoServer
from rfc3161_client import decode_timestamp_response

from activities.anchors import (
    AnchorError,
    AnchorPort,
    AnchorRefusal,
    ObjectStoreAnchor,
    TimestampAnchor,
    WitnessAnchor,
)
from activities.audit_log import AuditLogKeeper
from evergrant_server import audit
from evergrant_server.api.audit_proofs import receipt_view
from evergrant_server.audit.checkpoints import proofs
from evergrant_server.audit.checkpoints.heads import HeadsLog
from evergrant_server.audit.checkpoints.notes import HEADS_LOG, LogSigner, WitnessKey
from evergrant_server.audit.merkle_tree import Frontier, leaf_hash
from evergrant_server.core.audit import INSTALLATION, AuditAction, AuditEntry
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.egress import Egress, EgressPolicy
from evergrant_server.settings import Settings
from evergrant_server.store import Store
from evergrant_server.store.audit.checkpoints import WITNESS, Anchor, SignedTree
from evergrant_server.wiring.worker_parts import anchors_of
from tests.fakes.clock import SetClock
from tests.fakes.databases import NOW
from tests.fakes.patience import PATIENCE_S
from tests.unit.activities.timestamps import timestamp_authority

ACME, NAME = Tenant("acme"), "evergrant.example/audit"
KEY, WITNESS_KEY = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (3, 4))
SIGNER = LogSigner(NAME, KEY)
LEAVES = [leaf_hash(bytes([number])) for number in range(20)]
EVERY = timedelta(minutes=1)


def tree(size: int, leaves: list[bytes] = LEAVES) -> SignedTree:
    frontier = Frontier().appended(leaves[:size])
    return SignedTree(size, *SIGNER.sign(HEADS_LOG, frontier))


def kept(size: int) -> Anchor:
    return Anchor("any", size, NOW, b"", None)


async def no_path(_: int) -> list[bytes]:
    return []


@contextmanager
def a_witness(folder: Path, log: VerifierKey) -> Iterator[tuple[WitnessKey, str]]:
    witness = Witness("security.example/w1", WITNESS_KEY, [log], folder / "witness.db")
    with serving(witness, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield WitnessKey.parse(str(witness.key)), f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
    witness.close()


def egress_to(*urls: str) -> Egress:
    return Egress(EgressPolicy(allow=tuple(url.partition("://")[2].partition("/")[0] for url in urls)))


LOG = VerifierKey(NAME, PLAIN, KEY.public_key().public_bytes_raw())


async def test_a_witness_is_told_what_it_has_signed(tmp_path: Path):
    with a_witness(tmp_path, LOG) as (key, url):
        anchor = WitnessAnchor(egress_to(url), key, url, EVERY)
        evidence = await anchor.keep(tree(1), None, no_path)
        assert key.has_signed(tree(1).note, evidence.decode())
        assert not key.has_signed(tree(2).note, evidence.decode())
        # the database lost what the witness keeps, and the witness says it
        assert await anchor.keep(tree(1), kept(0), no_path)
    assert last_signed(tmp_path / "witness.db")[0][:2] == (NAME, 1)


async def test_a_witness_refuses_another_story(tmp_path: Path):
    with a_witness(tmp_path, LOG) as (key, url):
        anchor = WitnessAnchor(egress_to(url), key, url, EVERY)
        await anchor.keep(tree(1), None, no_path)
        rewritten = tree(1, [bytes(32)])
        with pytest.raises(AnchorRefusal, match="different roots"):
            await anchor.keep(rewritten, kept(1), no_path)
        with pytest.raises(AnchorRefusal, match="signed a log of 1 heads, and this one has 0"):
            await anchor.keep(tree(0), kept(0), no_path)


async def test_a_witness_that_isnt_the_one_of_the_settings(tmp_path: Path):
    with a_witness(tmp_path, LOG) as (key, url):
        another = WitnessKey(key.name, key.id, bytes(32))
        with pytest.raises(AnchorError, match="isn't signed by the key"):
            await WitnessAnchor(egress_to(url), another, url, EVERY).keep(tree(1), None, no_path)
    with pytest.raises(AnchorError, match="witness security"):
        await WitnessAnchor(egress_to(url), key, url, EVERY).keep(tree(1), None, no_path)


@pytest.fixture
def buckets(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an S3 that has a bucket with object lock, and one without."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    client = boto3.client("s3", endpoint_url=address, region_name="us-east-1")
    client.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
    client.create_bucket(Bucket="open")
    yield address
    server.stop()


def store_anchor(bucket: str, address: str, clock: SetClock) -> ObjectStoreAnchor:
    url = f"s3://{bucket}/evergrant?days=400&region=us-east-1&endpoint={address}"
    return ObjectStoreAnchor(url, EVERY, clock)


async def test_a_bucket_keeps_each_checkpoint_locked(buckets: str, clock: SetClock):
    anchor = store_anchor("locked", buckets, clock)
    evidence = json.loads(await anchor.keep(tree(7), None, no_path))
    client = boto3.client("s3", endpoint_url=buckets, region_name="us-east-1")
    stored = client.get_object(Bucket="locked", Key=evidence["key"])
    assert stored["Body"].read().decode() == tree(7).note
    assert stored["ObjectLockMode"] == "COMPLIANCE"
    assert stored["ObjectLockRetainUntilDate"] > NOW + timedelta(days=399)
    assert await anchor.keep(tree(7), None, no_path)  # another worker came first
    with pytest.raises(AnchorRefusal, match="another tree of this size"):
        await anchor.keep(tree(7, [bytes(32), *LEAVES[1:]]), None, no_path)


async def test_a_bucket_without_lock_keeps_nothing(buckets: str, clock: SetClock):
    with pytest.raises(AnchorError, match="store open: InvalidRequest"):
        await store_anchor("open", buckets, clock).keep(tree(7), None, no_path)


@pytest.mark.parametrize("url", ["s3:bucket", "https://bucket", "s3://bucket?dayz=3"])
def test_what_is_no_bucket(url: str, clock: SetClock):
    with pytest.raises(ValueError, match="s3://BUCKET"):
        ObjectStoreAnchor(url, EVERY, clock)


async def test_a_timestamp_is_verified(tmp_path: Path):
    async with timestamp_authority(tmp_path / "tsa") as (authority, url):
        anchor = TimestampAnchor(egress_to(url), url, authority.roots, EVERY)
        evidence = await anchor.keep(tree(3), None, no_path)
        assert decode_timestamp_response(evidence).status == 0
        authority.reply = evidence  # of another request
        with pytest.raises(AnchorError, match="no timestamp of this checkpoint"):
            await anchor.keep(tree(4), None, no_path)
        authority.reply = b"nonsense"
        with pytest.raises(AnchorError, match="no timestamp of this checkpoint"):
            await anchor.keep(tree(4), None, no_path)


async def test_a_timestamp_of_another_authority(tmp_path: Path):
    async with (
        timestamp_authority(tmp_path / "tsa") as (_, url),
        timestamp_authority(tmp_path / "other") as (other, _),
    ):
        anchor = TimestampAnchor(egress_to(url), url, other.roots, EVERY)
        with pytest.raises(AnchorError, match="no timestamp of this checkpoint"):
            await anchor.keep(tree(3), None, no_path)


# --- the worker's part ----------------------------------------------------------------------


class ScriptedAnchor:
    """An anchor that keeps checkpoints, or fails as it is told."""

    def __init__(self, name: str = "store s") -> None:
        self.name, self.every = name, timedelta(0)
        self.failure: Exception | None = None
        self.sizes: list[int] = []

    async def keep(self, checkpoint: SignedTree, before: Anchor | None, path_from: Any) -> bytes:
        self.sizes.append(checkpoint.size)
        if self.failure is not None:
            raise self.failure
        return b"kept"


async def append(store: Store) -> None:
    entry = AuditEntry(
        tenant=ACME,
        at=NOW,
        action=AuditAction.GRANT_REFRESHED,
        object="con_1",
        context=RequestContext(by="schedule"),
        detail={},
    )
    async with store.write() as tx:
        await audit.append(tx, entry)


def keeper(store: Store, clock: SetClock, *anchors: AnchorPort) -> AuditLogKeeper:
    late = timedelta(minutes=15)
    return AuditLogKeeper(store, clock, HeadsLog(store, clock, NAME), anchors, late)


async def a_turn(keeper: AuditLogKeeper) -> None:
    await keeper.advance()
    await keeper.anchor_due()
    await asyncio.gather(*keeper._turns.values())


async def recorded(store: Store, action: AuditAction) -> list[str]:
    async with store.read() as tx:
        page = await audit.page(tx, INSTALLATION, limit=200)
    return [record.object for record in page if record.action is action]


async def test_each_new_checkpoint_is_kept_once(store: Store, clock: SetClock):
    anchor = ScriptedAnchor()
    worker = keeper(store, clock, anchor)
    for _ in range(3):
        await a_turn(worker)
    assert anchor.sizes == []
    await append(store)
    for _ in range(3):
        await a_turn(worker)
    assert len(anchor.sizes) == 1


async def test_a_late_anchor_alarms_once_a_day_and_stops_nothing(store: Store, clock: SetClock):
    anchor = ScriptedAnchor()
    anchor.failure = AnchorError("store s: away")
    worker = keeper(store, clock, anchor)
    await append(store)
    await a_turn(worker)
    assert await recorded(store, AuditAction.ANCHOR_LATE) == []
    clock.advance(16 * 60)
    await a_turn(worker)
    await append(store)
    await a_turn(worker)
    assert await recorded(store, AuditAction.ANCHOR_LATE) == ["store s"]
    async with store.read() as tx:
        row = (await tx.checkpoints.anchors())["store s"]
        newest = await tx.checkpoints.newest()
    assert (row.size, row.problem) == (0, "store s: away")
    assert newest is not None
    anchor.failure = None
    await a_turn(worker)
    async with store.read() as tx:
        row = (await tx.checkpoints.anchors())["store s"]
        assert await tx.checkpoints.first_beyond(row.size) is None
    assert row.problem is None


async def test_a_new_anchor_isnt_late_and_one_that_is_gone_holds_up_nothing(store: Store, clock: SetClock):
    await append(store)
    await keeper(store, clock).advance()
    clock.advance(3600)
    anchor = ScriptedAnchor()
    anchor.failure = AnchorError("store s: away")
    await a_turn(keeper(store, clock, anchor))
    assert await recorded(store, AuditAction.ANCHOR_LATE) == []
    task = asyncio.create_task(keeper(store, clock).run())
    async with asyncio.timeout(PATIENCE_S):
        while True:
            async with store.read() as tx:
                if not await tx.checkpoints.anchors():
                    break
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_refusal_is_recorded(store: Store, clock: SetClock):
    anchor = ScriptedAnchor("witness w")
    anchor.failure = AnchorRefusal("witness w: two trees of one size have different roots")
    worker = keeper(store, clock, anchor)
    await append(store)
    await a_turn(worker)
    await a_turn(worker)
    assert await recorded(store, AuditAction.ANCHOR_REFUSED) == ["witness w"]


async def test_an_anchor_that_breaks_ends_no_other(store: Store, clock: SetClock):
    broken, whole = ScriptedAnchor("store b"), ScriptedAnchor("store w")
    broken.failure = KeyError("unexpected")
    await append(store)
    await a_turn(keeper(store, clock, broken, whole))
    async with store.read() as tx:
        rows = await tx.checkpoints.anchors()
    assert rows["store w"].evidence == b"kept"
    assert "KeyError" in (rows["store b"].problem or "")


async def test_a_receipt_has_the_witness_and_holds_offline(store: Store, clock: SetClock, tmp_path: Path):
    await append(store)
    heads = HeadsLog(store, clock, NAME)
    await heads.advance()
    async with store.read() as tx:
        key = await tx.checkpoints.key()
        shard = (await audit.page(tx, ACME))[0].shard
    assert key is not None
    log = VerifierKey(key.name, PLAIN, key.public)
    with a_witness(tmp_path, log) as (witness, url):
        anchor = WitnessAnchor(egress_to(url), witness, url, timedelta(0))
        worker = AuditLogKeeper(store, clock, heads, [anchor], timedelta(minutes=15))
        for _ in range(3):
            await append(store)
            await a_turn(worker)
    async with store.read() as tx:
        receipt = await proofs.receipt(tx, ACME, shard, 3)
    assert receipt is not None
    client_key = VerifierKey(witness.name, COSIGNATURE, witness.public)
    parsed = Receipt.parse(receipt_view(receipt).model_dump_json())
    assert parsed.verified(log, witnesses=[client_key], least=1).witnesses.keys() == {witness.name}


def test_the_anchors_of_the_settings(tmp_path: Path, clock: SetClock):
    witness = VerifierKey("security.example/w1", COSIGNATURE, WITNESS_KEY.public_key().public_bytes_raw())
    settings = Settings(
        data_dir=tmp_path,
        audit_witnesses=f"{witness} https://witness.example/",  # type: ignore[arg-type]  # as the environment has it
        audit_store="s3://bucket/evergrant",
    )
    names = [anchor.name for anchor in anchors_of(settings, egress_to(), clock)]
    assert names == [f"{WITNESS}security.example/w1", "store bucket"]
