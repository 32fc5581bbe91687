"""Checks the signed report of an incident without Evergrant: every line, their digest, and the signature.

A report is JSON Lines: what was ordered, a line for each connection, a summary, and the signed note
(c2sp.org/signed-note). Needs the extra `audit`. Reads a file of any size in constant memory.
"""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from evergrant.audit.notes import PLAIN, Note, NoteError, VerifierKey

FORMAT = "evergrant-incident/v1"
_LONGEST = 1024 * 1024  # bytes of a line


class ReportError(ValueError):
    """The report isn't what was signed, or not by this key. The text names the line."""


@dataclass(frozen=True)
class Report:
    """What a verified report says. `key` has signed it; `compared`: it is the one that was kept."""

    tenant: str
    incident: str
    kind: str
    installation: str
    connections: int
    outcomes: dict[str, int] = field(default_factory=dict[str, int])
    finished_at: str = ""
    key: str = ""
    compared: bool = False


def verify_report(lines: Iterable[bytes], key: str | None = None) -> Report:
    """The report, once every line of it is proven to be what the installation signed.

    `key` is the public key that was kept: `<name>+<id>+<base64>`. Without it the report is only proven to be
    as the key that it names has signed it. Raises ReportError.
    """
    digest, count, outcomes = bytes(32), 0, Counter[str]()
    first: dict[str, Any] = {}
    held: dict[str, Any] | None = None  # the last line but the note: the summary
    for number, raw in enumerate(lines, 1):
        line = raw.rstrip(b"\n")
        members = _members(line, number)
        if "note" in members:
            if held is None or number < 3:
                raise ReportError(f"line {number}: the note comes before the summary")
            return _verified(first, held, outcomes, (count, digest), members, key)
        digest, count = hashlib.sha256(digest + line).digest(), count + 1
        if number == 1:
            first = members
        elif held is not None:
            outcomes[str(held.get("outcome"))] += 1
        if number > 1:
            held = members
    raise ReportError(f"line {count + 1}: the report ends without a note: it was cut, or isn't done")


def _members(line: bytes, number: int) -> dict[str, Any]:
    try:
        members = json.loads(line) if len(line) <= _LONGEST else None
    except ValueError:
        members = None
    if not isinstance(members, dict):
        raise ReportError(f"line {number}: it is no line of a report")
    return cast("dict[str, Any]", members)


def _verified(
    header: dict[str, Any],
    summary: dict[str, Any],
    outcomes: Counter[str],
    body: tuple[int, bytes],
    last: dict[str, Any],
    key: str | None,
) -> Report:
    count, digest = body
    text, _, _ = str(last["note"]).rpartition("\n\n")
    signed = text.split("\n")
    names = [FORMAT, header.get("tenant"), header.get("incident")]
    if header.get("report") != FORMAT or signed[:3] != names or len(signed) != 6:
        raise ReportError("the note: it is of another report")
    if signed[3] != str(count):
        raise ReportError(f"the note: {signed[3]} lines were signed, the report has {count}")
    if signed[4] != base64.b64encode(digest).decode():
        raise ReportError("the note: a line was changed, or moved: the digest of all lines is another one")
    signer = _signer(str(last["note"]), key or str(last.get("key")))
    if summary.get("outcomes") != dict(outcomes) or summary.get("reported") != sum(outcomes.values()):
        raise ReportError("the summary: it counts other outcomes than the lines have")
    return Report(
        tenant=str(names[1]),
        incident=str(names[2]),
        kind=str(header.get("kind")),
        installation=str(header.get("installation")),
        connections=sum(outcomes.values()),
        outcomes=dict(outcomes),
        finished_at=signed[5],
        key=str(signer),
        compared=key is not None,
    )


def _signer(note: str, key: str) -> VerifierKey:
    """The public key, if it has signed the note. Raises ReportError."""
    try:
        signer, signed = VerifierKey.parse(key), Note.parse(note)
        if signer.type == PLAIN and signed.signed_by([signer]):
            return signer
    except NoteError as error:
        raise ReportError(f"the note: {error}") from None
    names = ", ".join(signature.name for signature in signed.signatures)
    raise ReportError(
        f"the note: {names} has signed it with another key than {signer.name}+{signer.id.hex()}"
    )
