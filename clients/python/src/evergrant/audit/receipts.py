"""A receipt: that the log has one record, checked offline with nothing but the log's public key.

It has two proofs (c2sp.org/tlog-proof@v1). The first leads from the record to the head of its shard's tree,
the second from that head to a checkpoint of the heads log, which has every head of the installation. So a log
that keeps two trees for one shard needs two heads logs, and a witness signs only one.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, cast

from evergrant.audit.notes import PLAIN, LogProof, NoteError, VerifierKey
from evergrant.audit.tree import HASH_BYTES, ProofError, leaf_hash

FORMAT = "evergrant-receipt/v1"
_HEAD = "evergrant-head/v1"
_RECORD = re.compile(r"([a-z0-9][a-z0-9_.-]*)/(0|[1-9][0-9]{0,18})")


class Flaw(StrEnum):
    """The kind of what is wrong with a receipt."""

    FORMAT = "format"
    INSTALLATION = "installation"
    TENANT = "tenant"
    RECORD = "record"
    BODY = "body"
    PROOF = "proof"
    HEAD = "head"
    HEAD_PROOF = "head_proof"
    SIGNATURE = "signature"
    WITNESS = "witness"


class ReceiptError(ValueError):
    """The receipt doesn't show what it is offered for. `kind` says where, `record` of which one."""

    def __init__(self, kind: Flaw, why: str, record: str = "") -> None:
        super().__init__(f"{f'record {record}: ' if record else ''}{kind}: {why}")
        self.kind, self.why, self.record = kind, why, record


@dataclass(frozen=True, slots=True)
class Head:
    """A record of the heads log: the size and the root of one shard's tree at a moment."""

    tenant: str
    shard: str
    size: int
    root: bytes
    at: str

    @classmethod
    def parse(cls, text: str) -> "Head":
        """Raises NoteError."""
        lines = text.split("\n")
        if len(lines) != 7 or lines[0] != _HEAD or lines[6] or not all(lines[:6]):
            raise NoteError(f"a head is {_HEAD}, a tenant, a shard, a size, a root and a moment, a line each")
        _, tenant, shard, size, root, at, _ = lines
        if not size.isascii() or not size.isdecimal() or str(int(size)) != size:
            raise NoteError("the size of a head is no decimal number")
        return cls(tenant, shard, int(size), _hash(root, "the root of a head"), at)


@dataclass(frozen=True, slots=True)
class Verified:
    """What a receipt shows: this log has this record at this place. `body` None: it was erased since."""

    tenant: str
    shard: str
    index: int
    body: dict[str, Any] | None
    head_at: str  # when its shard's head was recorded, as the log says
    log_size: int  # heads in the log at the checkpoint
    witnesses: dict[str, int]  # who has signed the checkpoint too, and when (POSIX seconds)


@dataclass(frozen=True, slots=True)
class Receipt:
    """A receipt as it was read: nothing of it is checked before `verified`."""

    tenant: str
    shard: str
    index: int
    body: str | None
    leaf: bytes
    proof: LogProof
    head: str
    head_proof: LogProof

    @classmethod
    def parse(cls, text: str) -> "Receipt":
        """Of the JSON text that `GET /v1/audit/proof` answers with. Raises ReceiptError."""
        try:
            members = json.loads(text)
        except (ValueError, RecursionError):
            raise ReceiptError(Flaw.FORMAT, "it is no JSON") from None
        if not isinstance(members, dict) or cast(Any, members).get("format") != FORMAT:
            raise ReceiptError(Flaw.FORMAT, f"it is no JSON object of the format {FORMAT}")
        return cls._of(cast("dict[str, Any]", members))

    @classmethod
    def _of(cls, members: dict[str, Any]) -> "Receipt":
        record, body = members.get("record"), members.get("body")
        texts = [members.get(name) for name in ("tenant", "leaf", "proof", "head", "head_proof")]
        shape = _RECORD.fullmatch(record) if isinstance(record, str) else None
        if shape is None or not isinstance(body, str | None) or not all(isinstance(t, str) for t in texts):
            raise ReceiptError(Flaw.FORMAT, "a member is missing, or isn't text")
        tenant, leaf, proof, head, head_proof = cast("list[str]", texts)
        name = f"{shape[1]}/{shape[2]}"
        return cls(
            tenant,
            shape[1],
            int(shape[2]),
            body,
            _at(Flaw.FORMAT, name, lambda: _hash(leaf, "the leaf")),
            _at(Flaw.PROOF, name, lambda: LogProof.parse(proof)),
            head,
            _at(Flaw.HEAD_PROOF, name, lambda: LogProof.parse(head_proof)),
        )

    @property
    def record(self) -> str:
        """Its place in the tenant's log: `<shard>/<index>`."""
        return f"{self.shard}/{self.index}"

    def verified(
        self,
        log: VerifierKey,
        *,
        tenant: str | None = None,
        record: str | None = None,
        witnesses: Iterable[VerifierKey] = (),
        least: int = 0,
    ) -> Verified:
        """What the receipt shows. Raises ReceiptError.

        `log` is the installation's public key, from its security team and not from the receipt. `tenant` and
        `record` are what is asked about, `least` how many of the witnesses must have signed.
        """
        if tenant not in (None, self.tenant):
            raise self._error(Flaw.TENANT, f"it is of the tenant {self.tenant}, not of {tenant}")
        if record not in (None, self.record):
            raise self._error(Flaw.RECORD, f"it is of the record {self.record}, not of {record}")
        body = self._checked_body()
        head = self._checked_head(log)
        signed = self._checked_witnesses(witnesses, least)
        size = self.head_proof.checkpoint.size
        return Verified(self.tenant, self.shard, self.index, body, head.at, size, signed)

    def _checked_body(self) -> dict[str, Any] | None:
        return None if self.body is None else body_of(self.body.encode(), self.leaf, self.record)

    def _checked_head(self, log: VerifierKey) -> Head:
        """The head that both proofs meet at."""
        if self.proof.index != self.index:
            raise self._error(Flaw.RECORD, f"its proof is of the record {self.shard}/{self.proof.index}")
        self._check_proof(Flaw.PROOF, self.proof, self.leaf, shard_key(log, self.tenant, self.shard))
        head = _at(Flaw.HEAD, self.record, lambda: Head.parse(self.head))
        checkpoint = self.proof.checkpoint
        if (head.tenant, head.shard) != (self.tenant, self.shard):
            raise self._error(Flaw.HEAD, f"it is of {head.tenant}/{head.shard}")
        if (head.size, head.root) != (checkpoint.size, checkpoint.root):
            raise self._error(Flaw.HEAD, "it isn't the one that the record's proof leads to")
        self._check_proof(Flaw.HEAD_PROOF, self.head_proof, leaf_hash(self.head.encode()), log)
        return head

    def _check_proof(self, kind: Flaw, proof: LogProof, leaf: bytes, log: VerifierKey) -> None:
        if proof.checkpoint.origin != log.name:
            why = f"{kind} is of {proof.checkpoint.origin}, not of {log.name}"
            raise self._error(Flaw.INSTALLATION, why)
        try:
            proof.checkpoint.require_signed(log)
        except NoteError as error:
            raise self._error(Flaw.SIGNATURE, f"of {kind}: {error}") from None
        try:
            proof.require_has(leaf, log)
        except ProofError as error:
            raise self._error(kind, str(error)) from None

    def _checked_witnesses(self, witnesses: Iterable[VerifierKey], least: int) -> dict[str, int]:
        try:
            signed = self.head_proof.checkpoint.note.signed_by(witnesses)
        except NoteError as error:
            raise self._error(Flaw.WITNESS, str(error)) from None
        times = {name: at for name, at in signed.items() if at is not None}
        if len(times) < least:
            raise self._error(Flaw.WITNESS, f"{len(times)} of {least} have signed: ask again in a minute")
        return times

    def _error(self, kind: Flaw, why: str) -> ReceiptError:
        return ReceiptError(kind, why, self.record)


def body_of(raw: bytes, leaf: bytes, record: str) -> dict[str, Any]:
    """The content of a record's body, if this is its leaf. Raises ReceiptError."""
    if leaf_hash(raw) != leaf:
        raise ReceiptError(Flaw.BODY, "it isn't what was recorded: its hash is another one", record)
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise ReceiptError(Flaw.BODY, "it is no JSON object", record)
    return cast("dict[str, Any]", body)


def shard_key(log: VerifierKey, tenant: str, shard: str) -> VerifierKey:
    """The key of one shard's tree: the log's, under the shard's name."""
    return replace(log, name=f"{log.name}/{tenant}/{shard}", type=PLAIN)


def _at(kind: Flaw, record: str, parse: Any) -> Any:
    try:
        return parse()
    except NoteError as error:
        raise ReceiptError(kind, str(error), record) from None


def _hash(text: str, place: str) -> bytes:
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        value = b""
    if len(value) != HASH_BYTES:
        raise NoteError(f"{place} is no hash in base64")
    return value
