"""Files of grants: a JSON object on each line, or its JWE. Read line by line, in constant memory.

An error about a line names its number and never quotes it: the line holds tokens.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from evergrant.errors import BadRequest

MAX_LINE_BYTES = 128 * 1024
_A_LINE = (
    ': each line is one object, such as {"integration": "crm", "subject": "alice", "access_token": "…"}; '
    "another system's file needs --from"
)
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
    """Decrypts sealed lines with a private key. Needs the extra `sealed`."""

    def __init__(self, path: Path) -> None:
        """Raises BadRequest when the file holds no private X25519 or P-256 key."""
        self._key = _private_key(path)

    def decrypt(self, line: bytes) -> bytes | None:
        """The plain text, or None for a line that was altered or sealed to another key."""
        from joserfc import jwe
        from joserfc.errors import JoseError

        try:
            return jwe.decrypt_compact(line, self._key, algorithms=_ALGORITHMS).plaintext
        except (JoseError, ValueError, TypeError, KeyError):
            return None


def read_lines(
    source: BinaryIO, decrypter: LineDecrypter | None = None
) -> Iterator[ParsedLine | InvalidLine]:
    """Every line that isn't blank. The server checks the members."""
    number = end = 0
    while raw := source.readline(MAX_LINE_BYTES + 1):
        number, end = number + 1, end + len(raw)
        if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
            end += _skip_line(source)
            yield InvalidLine(number, end, "line_too_long", f"more than {MAX_LINE_BYTES} bytes")
            continue
        if raw.strip():
            yield _parse_line(number, end, raw.strip().removeprefix(b"\xef\xbb\xbf"), decrypter)


def _parse_line(
    number: int, end: int, raw: bytes, decrypter: LineDecrypter | None
) -> ParsedLine | InvalidLine:
    if not raw.startswith(b"{") and raw.count(b".") == 4:
        if decrypter is None:
            return InvalidLine(number, end, "sealed", "it is sealed: give the private key with --key")
        plain = decrypter.decrypt(raw)
        if plain is None:
            return InvalidLine(number, end, "not_for_this_key", "sealed to another key, or altered")
        raw = plain
    value = parse_json(number, end, raw)
    if isinstance(value, dict):
        return ParsedLine(number, end, cast(dict[str, object], value))
    if not isinstance(value, InvalidLine):
        value = InvalidLine(number, end, "not_an_object", "it is JSON, but not an object")
    example = number == 1 and value.code in ("not_json", "not_an_object")
    return replace(value, detail=value.detail + _A_LINE) if example else value


def parse_json(number: int, end: int, raw: bytes) -> object:
    """The value, or the InvalidLine that says why it is none."""
    try:
        return json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique_members, parse_constant=_refuse_constant
        )
    except _DuplicateMember:
        return InvalidLine(number, end, "duplicate_member", "a member is given twice")
    except UnicodeDecodeError:
        return InvalidLine(number, end, "not_utf8", "it is not UTF-8")
    except (ValueError, RecursionError):
        return InvalidLine(number, end, "not_json", "it is not valid JSON")


def write_private_file(path: Path, text: str) -> None:
    """Create a file with mode 0600. Raises BadRequest when it exists or can't be written."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise file_error(path, error) from None
    keep_out_of_git(path)


_SPECIAL = re.compile(r"([*?\[\]\\!# ])")


def keep_out_of_git(path: Path) -> None:
    """Have Git ignore a file in the clone that it lies in, and in no other: by `.git/info/exclude`."""
    path = path.absolute()
    root = next((folder for folder in path.parents if (folder / ".git").exists()), None)
    if root is None:
        return
    line = "/" + _SPECIAL.sub(r"\\\1", path.relative_to(root).as_posix())
    with suppress(OSError, UnicodeDecodeError):
        exclude = _git_folder(root) / "info" / "exclude"
        text = exclude.read_text(encoding="utf-8") if exclude.exists() else ""
        if line in text.splitlines():
            return
        exclude.parent.mkdir(exist_ok=True)
        before = "" if not text or text.endswith("\n") else "\n"
        with exclude.open("a", encoding="utf-8") as file:
            file.write(f"{before}{line}\n")


def _git_folder(root: Path) -> Path:
    """The folder that all worktrees of a clone share: gitrepository-layout(5)."""
    git = root / ".git"
    if git.is_file():
        git = root / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
    common = git / "commondir"
    return git / common.read_text(encoding="utf-8").strip() if common.is_file() else git


def generate_key_pair() -> tuple[str, str]:
    """A new X25519 pair as two JWK texts: the private key, and the public one for `export`."""
    key = _joserfc().OKPKey.generate_key("X25519")
    private, public = key.as_dict(private=True), key.as_dict(private=False)
    return json.dumps(private, indent=2) + "\n", json.dumps(public, indent=2) + "\n"


def read_public_key(path: Path) -> dict[str, object] | str:
    """The part of a key file to send: the public members of a JWK, or PEM as it is.

    Raises BadRequest for a private key in PEM, which must not be sent.
    """
    text = read_key_text(path)
    if "PRIVATE KEY" in text:
        raise key_error(path, "it is a private key: give the public half")
    if not text.lstrip().startswith("{"):
        return text
    try:
        value: object = json.loads(text)
    except ValueError:
        raise key_error(path, "it is not JSON") from None
    members = cast(dict[str, object], value)
    return {name: members[name] for name in ("kty", "crv", "x", "y") if name in members}


def file_error(path: Path, error: OSError) -> BadRequest:
    if isinstance(error, FileExistsError):
        repair = f"Name another file, or remove this one first: rm {path}"
        return BadRequest(f"{path} is there already", code="file_exists", repair=repair)
    return BadRequest(
        f"{path} can't be used: {error.strerror}", code="file_unusable", repair="Check the path."
    )


def _private_key(path: Path) -> Any:
    jwk, text = _joserfc(), read_key_text(path)
    for key_type in (jwk.OKPKey, jwk.ECKey):
        try:
            key = key_type.import_key(json.loads(text) if text.lstrip().startswith("{") else text)
        except Exception:  # joserfc and cryptography raise many kinds, and their messages may quote the key
            continue
        if key.is_private and key.curve_name in ("X25519", "P-256"):
            return key
    raise key_error(path, "it holds no private X25519 or P-256 key")


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


def read_key_text(path: Path) -> str:
    """Raises BadRequest when it can't be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise file_error(path, error) from None
    except UnicodeDecodeError:
        raise key_error(path, "it is not text") from None


def key_error(
    path: Path, reason: str, *, repair: str = "Make a pair with: evergrant export-key PRIVATE PUBLIC."
) -> BadRequest:
    return BadRequest(f"{path} is not the key that is needed: {reason}", code="key_unusable", repair=repair)


class _DuplicateMember(Exception):
    pass


def _unique_members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise _DuplicateMember
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError("not a JSON number")


def _skip_line(source: BinaryIO) -> int:
    """Read to the end of the line. Returns the number of bytes read."""
    skipped = 0
    while part := source.readline(MAX_LINE_BYTES):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped
