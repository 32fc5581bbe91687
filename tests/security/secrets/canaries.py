"""Looks for secrets, in every form that a place may keep them in."""

import base64
import binascii
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

_SHORTEST = 12  # a form that is shorter would be found by chance


def forms(secret: str | bytes) -> dict[str, bytes]:
    """How a secret may be written: raw, URL-encoded, JSON-escaped, hex, base64 at each alignment."""
    raw = secret.encode() if isinstance(secret, str) else secret
    found = {"raw": raw, "hex": raw.hex().encode(), "HEX": raw.hex().upper().encode()}
    if isinstance(secret, str):
        found |= {
            "url": quote(secret, safe="").encode(),
            "form": quote_plus(secret).encode(),
            "json": json.dumps(secret)[1:-1].encode(),
        }
    for before in range(3):
        usable = (before + len(raw)) * 8 // 6  # what follows the secret decides the characters after these
        first = -(-before * 8 // 6)
        found[f"base64+{before}"] = base64.b64encode(bytes(before) + raw)[first:usable]
        found[f"base64url+{before}"] = base64.urlsafe_b64encode(bytes(before) + raw)[first:usable]
    assert all(len(form) >= _SHORTEST for form in found.values()), "too short to look for"
    return found


def hits(secrets: Mapping[str, Sequence[str | bytes]], place: Sequence[bytes]) -> list[str]:
    """`kind (form)` of everything that was found in a place."""
    return [
        f"{kind} ({form})"
        for kind, values in secrets.items()
        for value in values
        for form, needle in forms(value).items()
        if any(needle in text for text in place)
    ]


def decoded(document: Any) -> Iterator[bytes]:
    """A document of Temporal's JSON as it is, and whatever its strings hold in base64, opened."""
    yield json.dumps(document).encode()
    for text in _texts(document, _SHORTEST):
        try:
            yield base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            continue  # plain text, which is in the document as it is


def _texts(document: Any, shortest: int) -> Iterator[str]:
    stack = [document]
    while stack:
        match stack.pop():
            case dict() as members:
                stack += members.values()
            case list() as items:
                stack += items
            case str() as text if len(text) >= shortest:
                yield text


def dump(database: Path) -> Iterator[bytes]:
    """Every value of every table of a SQLite file, and the file and its write-ahead log as bytes."""
    wal = database.with_name(database.name + "-wal")
    yield database.read_bytes()
    yield wal.read_bytes() if wal.exists() else b""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")]
        for table in tables:
            for row in connection.execute(f'SELECT * FROM "{table}"'):
                yield from (v if isinstance(v, bytes) else str(v).encode() for v in row if v is not None)
    finally:
        connection.close()


def files(folder: Path) -> Iterator[bytes]:
    yield from (path.read_bytes() for path in folder.rglob("*") if path.is_file())


def keys_of(key_file: Path) -> list[str | bytes]:
    """The keys in a key file, as they are written and as the bytes they stand for."""
    found: list[str | bytes] = []
    for text in _texts(json.loads(key_file.read_text()), 40):
        found += [text, base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))]
    return found
