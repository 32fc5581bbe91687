"""Files of grants: a JSON object on each line, or a JWE of one. Read line by line, however long.

What is wrong with a line is said by its number and never quotes it: it holds tokens.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from evergrant.errors import BadRequest

LONGEST_LINE = 128 * 1024  # bytes
_ALGORITHMS = ["ECDH-ES+A256KW", "A256GCM"]


@dataclass(frozen=True, slots=True)
class ParsedLine:
    """`end` is where the line ends in the file, in bytes."""

    number: int
    end: int
    item: dict[str, object] = field(repr=False)


@dataclass(frozen=True, slots=True)
class InvalidLine:
    number: int
    end: int
    code: str
    detail: str


class LineDecrypter:
    """Opens sealed lines with a private key. Needs the extra `sealed`."""

    def __init__(self, path: Path) -> None:
        """Raises BadRequest when the file holds no private X25519 or P-256 key."""
        self._key = _private_key(path)

    def decrypt(self, line: bytes) -> bytes | None:
        """What was sealed, or None: for another key, or altered."""
        from joserfc import jwe
        from joserfc.errors import JoseError

        try:
            return jwe.decrypt_compact(line, self._key, algorithms=_ALGORITHMS).plaintext
        except (JoseError, ValueError, TypeError, KeyError):
            return None


def read_lines(source: BinaryIO, opener: LineDecrypter | None = None) -> Iterator[ParsedLine | InvalidLine]:
    """Every line that isn't blank, judged. The schema is the server's business."""
    number = end = 0
    while raw := source.readline(LONGEST_LINE + 1):
        number, end = number + 1, end + len(raw)
        if len(raw) > LONGEST_LINE and not raw.endswith(b"\n"):
            end += _skip(source)
            yield InvalidLine(number, end, "line_too_long", f"more than {LONGEST_LINE} bytes")
            continue
        if raw.strip():
            yield _judged(number, end, raw.strip().removeprefix(b"\xef\xbb\xbf"), opener)


def _judged(number: int, end: int, raw: bytes, opener: LineDecrypter | None) -> ParsedLine | InvalidLine:
    if not raw.startswith(b"{") and raw.count(b".") == 4:
        if opener is None:
            return InvalidLine(number, end, "sealed", "it is sealed: give the private key with --key")
        opened = opener.decrypt(raw)
        if opened is None:
            return InvalidLine(number, end, "not_for_this_key", "sealed to another key, or altered")
        raw = opened
    try:
        value: object = json.loads(raw.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number)
    except _Doubled:
        return InvalidLine(number, end, "duplicate_member", "a member is given twice")
    except UnicodeDecodeError:
        return InvalidLine(number, end, "not_utf8", "it is not UTF-8")
    except (ValueError, RecursionError):
        return InvalidLine(number, end, "not_json", "it is not valid JSON")
    if not isinstance(value, dict):
        return InvalidLine(number, end, "not_an_object", "it is JSON, but not an object")
    return ParsedLine(number, end, cast(dict[str, object], value))


def write_private_file(path: Path, text: str) -> None:
    """A new file that its owner alone can read. Raises BadRequest when it exists or can't be written."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise file_error(path, error) from None


def generate_key_pair() -> tuple[str, str]:
    """A fresh X25519 pair as JWK texts: the private one for a safe place, the public one for `export`."""
    key = _joserfc().OKPKey.generate_key("X25519")
    private, public = key.as_dict(private=True), key.as_dict(private=False)
    return json.dumps(private, indent=2) + "\n", json.dumps(public, indent=2) + "\n"


def read_public_key(path: Path) -> dict[str, object] | str:
    """What to send of a key file: the public members of a JWK, or PEM as it is.

    Raises BadRequest for PEM of a private key: it must not travel, and needn't.
    """
    text = _text(path)
    if "PRIVATE KEY" in text:
        raise _no_key(path, "it is a private key: give the public half")
    if not text.lstrip().startswith("{"):
        return text
    try:
        value: object = json.loads(text)
    except ValueError:
        raise _no_key(path, "it is no JSON") from None
    members = cast(dict[str, object], value)
    return {name: members[name] for name in ("kty", "crv", "x", "y") if name in members}


def file_error(path: Path, error: OSError) -> BadRequest:
    return BadRequest(
        f"{path} can't be used: {error.strerror}", code="file_unusable", repair="Check the path."
    )


def _private_key(path: Path) -> Any:
    jwk, text = _joserfc(), _text(path)
    for kind in (jwk.OKPKey, jwk.ECKey):
        try:
            key = kind.import_key(json.loads(text) if text.lstrip().startswith("{") else text)
        except Exception:  # joserfc and cryptography raise many kinds, and their words may quote the key
            continue
        if key.is_private and key.curve_name in ("X25519", "P-256"):
            return key
    raise _no_key(path, "it holds no private X25519 or P-256 key")


def _joserfc() -> Any:
    try:
        from joserfc import jwk
    except ImportError:
        raise BadRequest(
            "sealed files need joserfc",
            code="extra_missing",
            repair="Install it: pip install 'evergrant[sealed]'.",
        ) from None
    return jwk


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise file_error(path, error) from None
    except UnicodeDecodeError:
        raise _no_key(path, "it is not text") from None


def _no_key(path: Path, why: str) -> BadRequest:
    return BadRequest(
        f"{path} is not the key that is needed: {why}",
        code="key_unusable",
        repair="Make a pair with: evergrant export-key PRIVATE PUBLIC.",
    )


class _Doubled(Exception):
    pass


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Doubled
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError("not a JSON number")


def _skip(source: BinaryIO) -> int:
    """Read to the end of the line; how many bytes that were."""
    skipped = 0
    while part := source.readline(LONGEST_LINE):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped
