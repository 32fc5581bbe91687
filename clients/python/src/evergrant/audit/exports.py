"""An export of the audit log, checked offline: each shard has every record, up to a head that the log signed.

A shard begins with a receipt of the last record that its head covers. The records before have that head's
root, or one of them was edited, left out or moved. Memory doesn't grow with the file. A shard of a hash chain
of before the trees has no receipt: its records are linked, and a record in a tree says how it ended. What an
export leaves out as a whole, a shard with its receipt, only the heads log tells.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from evergrant.audit.notes import VerifierKey
from evergrant.audit.receipts import Flaw, Receipt, ReceiptError
from evergrant.audit.tree import EMPTY_ROOT, leaf_hash, node_hash

_CHAINED = 1  # `format` in the body of a record of a hash chain
_GENESIS = "0" * 64
_CHAIN_ENDED = "audit.chain_ended"


@dataclass(frozen=True, slots=True)
class VerifiedExport:
    """What an export shows. `proven` records are covered by a signed head; the others are newer than it.

    `whole`: the file has the last page. `witnesses` have signed every checkpoint, the number of them that
    did.
    """

    tenant: str
    shards: int
    records: int
    proven: int
    erased: int
    histories: int
    whole: bool


@dataclass
class _Tree:
    """The records of one shard, as far as they were read."""

    shard: str
    covered: int = 0  # records that the head covers
    root: bytes = EMPTY_ROOT  # theirs
    size: int = 0
    peaks: list[bytes] = field(default_factory=list[bytes])
    chained: bool = False
    last_hash: str = _GENESIS  # of a chain

    def append(self, leaf: bytes) -> None:
        node, above = leaf, self.size
        while above & 1:
            node, above = node_hash(self.peaks.pop(), node), above >> 1
        self.peaks.append(node)
        self.size += 1

    def current_root(self) -> bytes:
        if not self.peaks:
            return EMPTY_ROOT
        *lower, root = self.peaks
        for peak in reversed(lower):
            root = node_hash(peak, root)
        return root


class ExportVerifier:
    """Reads the lines of one export, in their order."""

    def __init__(
        self,
        log: VerifierKey,
        *,
        tenant: str | None = None,
        witnesses: Iterable[VerifierKey] = (),
        least: int = 0,
    ) -> None:
        """As `Receipt.verified`."""
        self._log, self._tenant = log, tenant
        self._witnesses, self._least = tuple(witnesses), least
        self._tree: _Tree | None = None
        self._chains: dict[str, tuple[int, str]] = {}
        self._ended: dict[str, tuple[object, object]] = {}
        self._shards = self._records = self._proven = self._erased = self._histories = 0
        self._whole = False

    def read(self, line: bytes) -> None:
        """Take the next line. Raises ReceiptError that names the record."""
        try:
            members = json.loads(line)
        except (ValueError, RecursionError):
            members = None
        if not isinstance(members, dict) or self._whole:
            why = "it goes on behind its end" if self._whole else f"line {line[:20]!r} is none of an export"
            raise ReceiptError(Flaw.FORMAT, why)
        content = cast("dict[str, Any]", members)
        if "shard" in content:
            self._read_record(content)
        elif "receipt" in content:
            self._begin(Receipt.parse(json.dumps(content["receipt"])))
        elif isinstance(content.get("page"), dict):
            self._of_tenant(content["page"].get("tenant"))
            self._whole = content["page"].get("next") is None
        elif "history" in content:
            self._histories += 1
        else:
            raise ReceiptError(Flaw.FORMAT, f"line {line[:20]!r} is none of an export")

    def verified(self) -> VerifiedExport:
        """What the lines show. Raises ReceiptError."""
        self._end_shard()
        for shard, end in self._chains.items():
            if self._ended.get(shard) != end:
                why = f"no record says that the chain ended here: {end[0]} records"
                raise ReceiptError(Flaw.PROOF, why, f"{shard}/{end[0]}")
        return VerifiedExport(
            self._tenant or "",
            self._shards,
            self._records,
            self._proven,
            self._erased,
            self._histories,
            self._whole,
        )

    def _begin(self, receipt: Receipt) -> None:
        self._of_tenant(receipt.tenant)
        receipt.verified(self._log, witnesses=self._witnesses, least=self._least)
        self._end_shard()
        checkpoint = receipt.proof.checkpoint
        self._begin_shard(_Tree(receipt.shard, checkpoint.size, checkpoint.root))

    def _begin_shard(self, tree: _Tree) -> None:
        if self._last_shard is not None and tree.shard <= self._last_shard:
            raise ReceiptError(Flaw.RECORD, "its shard has been there already", f"{tree.shard}/0")
        self._tree, self._last_shard = tree, tree.shard
        self._shards += 1

    _last_shard: str | None = None

    def _end_shard(self) -> None:
        tree = self._tree
        if tree is None:
            return
        if tree.chained:
            self._chains[tree.shard] = tree.size, tree.last_hash
        elif tree.size < tree.covered:
            why = f"it is missing: the head covers {tree.covered} records"
            raise ReceiptError(Flaw.RECORD, why, f"{tree.shard}/{tree.size}")
        self._tree = None

    def _read_record(self, content: dict[str, Any]) -> None:
        shard, index, hashed, body = (content.get(name) for name in ("shard", "index", "hash", "body"))
        if (
            not isinstance(shard, str)
            or type(index) is not int
            or not isinstance(hashed, str)
            or not isinstance(body, str | None)
        ):
            raise ReceiptError(Flaw.FORMAT, "a record's member is missing, or is of another type")
        if self._tree is None or self._tree.shard != shard:
            self._end_shard()
            self._begin_shard(_Tree(shard, chained=index == 1))
        tree, place = cast(_Tree, self._tree), f"{shard}/{index}"
        if index != tree.size + tree.chained:
            why = f"{shard}/{tree.size + tree.chained} is missing before it"
            raise ReceiptError(Flaw.RECORD, why, place)
        self._records += 1
        self._erased += body is None
        if tree.chained:
            self._read_chained(tree, place, hashed, body)
        else:
            self._read_leaf(tree, place, hashed, body)

    def _read_leaf(self, tree: _Tree, place: str, hashed: str, body: str | None) -> None:
        leaf = _bytes(hashed, place)
        if body is not None and leaf_hash(body.encode()) != leaf:
            raise ReceiptError(Flaw.BODY, "it isn't what was recorded: its hash is another one", place)
        tree.append(leaf)
        if tree.size == tree.covered:
            if tree.current_root() != tree.root:
                why = "the records up to it aren't those that the head covers: one was edited or exchanged"
                raise ReceiptError(Flaw.PROOF, why, place)
            self._proven += tree.covered
        if body is not None and f'"{_CHAIN_ENDED}"' in body:
            members = json.loads(body)
            if members.get("action") == _CHAIN_ENDED:
                detail = members["detail"]
                self._ended[members["object"]] = detail["count"], detail["last_hash"]

    def _read_chained(self, tree: _Tree, place: str, hashed: str, body: str | None) -> None:
        """A record of a chain: its hash covers it and the hash before."""
        if body is not None:
            if hashlib.sha256(body.encode()).hexdigest() != hashed:
                raise ReceiptError(Flaw.BODY, "it isn't what was recorded: its hash is another one", place)
            members = json.loads(body)
            if members.get("format") != _CHAINED or members.get("previous_hash") != tree.last_hash:
                raise ReceiptError(Flaw.RECORD, "it doesn't follow the record before it", place)
        tree.size += 1
        tree.last_hash = hashed

    def _of_tenant(self, tenant: object) -> None:
        if not isinstance(tenant, str) or tenant != (self._tenant or tenant):
            raise ReceiptError(Flaw.TENANT, f"it is of the tenant {tenant}, not of {self._tenant}")
        self._tenant = tenant


def _bytes(text: str, place: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise ReceiptError(Flaw.FORMAT, "its hash isn't in hexadecimal", place) from None
