"""The key file: JSON, mode 0600, written whole or not at all, and refused when it looks wrong."""

import base64
import binascii
import contextlib
import fcntl
import itertools
import json
import os
import secrets
import stat
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.crypto.envelope import KEY_BYTES, SealingKey

FORMAT = "evergrant-keys"
VERSION = 1
_LONGEST = 1 << 20  # bytes; a key file has a few kB
_FEWEST_DISTINCT = 12  # of 32 random bytes about 30 differ; fewer than 12 never happens by chance

_CREATE = "Create keys with keys create, never by hand."


@dataclass(frozen=True)
class RootKeys:
    """The root keys of one purpose: every one still opens, `current` alone seals."""

    current: str
    keys: dict[str, SealingKey]


@dataclass(frozen=True)
class KeyFile:
    """The content of a key file. `export` is True for a copy made for a role with fewer purposes.

    A gateway's copy has no `derive`, from which every other secret follows: `derived` has the secrets that it
    uses, by their names, and `public` the Ed25519 keys with which it verifies, by their signers. Beside a
    `derive`, `derived` has the secrets that cells share (ADR 0139): they follow from another cell's.
    """

    purposes: dict[str, RootKeys]
    subject: SealingKey
    derive: SealingKey | None
    export: bool = False
    derived: Mapping[str, SealingKey] = field(default_factory=dict)
    public: Mapping[str, bytes] = field(default_factory=dict)


def key_file_error(path: Path, why: str, repair: str) -> Failure:
    return Failure(ErrorCode.KEY_UNAVAILABLE, f"The key file {path} {why}. {repair}", key_file=str(path))


def read(path: Path) -> KeyFile:
    """Read and check the file. Raises Failure KEY_UNAVAILABLE with a one-line repair."""
    return _Parser(path).parse(_read_private(path))


def read_cell_secrets(path: Path) -> KeyFile:
    """Read what `put_cell_secrets` wrote. Raises Failure KEY_UNAVAILABLE with a one-line repair."""
    return _Parser(path).parse_bundle(_read_private(path))


def put_cell_secrets(path: Path, file: KeyFile) -> None:
    """Write the secrets that cells share, a file without roots. Raises Failure KEY_UNAVAILABLE: it exists."""
    create(path, replace(file, purposes={}))


def bundle_bytes(file: KeyFile) -> bytes:
    """What the file holds beside its roots, as a key service wraps it."""
    return _serialised(replace(file, purposes={}))


def read_bundle(raw: bytes, row: str) -> KeyFile:
    """What `bundle_bytes` made, a file without roots. Raises Failure KEY_UNAVAILABLE that names the row."""
    return _Parser(Path(row)).parse_bundle(raw)


def _read_private(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        repair = "Restore a backup, or run: python -m evergrant_server keys create"
        raise key_file_error(path, "doesn't exist", repair) from None
    except OSError as error:
        reason = error.strerror or "is unreadable"
        raise key_file_error(path, f"can't be opened ({reason})", "Give this user access to it.") from None
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise key_file_error(path, "is not a regular file", "Name the file itself.")
        if facts.st_uid != os.geteuid():
            raise key_file_error(path, "belongs to another user", f"Run: chown {os.geteuid()} {path}")
        if facts.st_mode & 0o077:
            raise key_file_error(path, "can be read or written by others", f"Run: chmod 600 {path}")
        return os.read(descriptor, _LONGEST + 1)
    finally:
        os.close(descriptor)


class _Parser:
    """Checks the content of one key file; each refusal names the file and a repair."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def parse(self, raw: bytes) -> KeyFile:
        document = self._document(raw)
        purposes = {name: self._roots(name, content) for name, content in document["purposes"].items()}
        return self._file(document, purposes)

    def parse_bundle(self, raw: bytes) -> KeyFile:
        return self._file(self._json(raw), {})

    def _file(self, document: dict[str, Any], purposes: dict[str, RootKeys]) -> KeyFile:
        subject = self._key("subject", document.get("subject"))
        derived = self._keys("derived", document.get("derived", {}))
        is_whole = "derive" in document or not derived
        derive = self._key("derive", document.get("derive")) if is_whole else None
        keys = [subject, *derived.values(), *([derive] if derive else [])]
        keys += [key for roots in purposes.values() for key in roots.keys.values()]
        if len({key.reveal() for key in keys}) != len(keys):
            raise key_file_error(self._path, "uses one key twice", _CREATE)
        public = {
            name: key.reveal() for name, key in self._keys("public", document.get("public", {})).items()
        }
        return KeyFile(purposes, subject, derive, document.get("export") is True, derived, public)

    def _document(self, raw: bytes) -> dict[str, Any]:
        document = self._json(raw)
        if not isinstance(document.get("purposes"), dict) or not document["purposes"]:
            self._malformed("it has no purposes")
        return document

    def _json(self, raw: bytes) -> dict[str, Any]:
        if len(raw) > _LONGEST:
            self._malformed("it is too large")
        try:
            document = json.loads(raw, object_pairs_hook=self._without_duplicates)
        except (ValueError, RecursionError):
            self._malformed("it is not JSON")
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            self._malformed("it is not an Evergrant key file")
        if document.get("version") != VERSION:
            repair = "Use the server version that wrote it."
            raise key_file_error(self._path, "has another format version", repair)
        return document

    def _roots(self, purpose: str, content: Any) -> RootKeys:
        if not isinstance(content, dict) or not isinstance(content.get("keys"), dict):
            self._malformed(f"purpose {purpose} has no keys")
        if content.get("current") not in content["keys"]:
            self._malformed(f"purpose {purpose} has no current key")
        if not all(0 < len(name.encode()) < 256 for name in content["keys"]):
            self._malformed(f"purpose {purpose} has a key without a usable name")
        keys = {name: self._key(name, value) for name, value in content["keys"].items()}
        return RootKeys(content["current"], keys)

    def _keys(self, name: str, content: object) -> dict[str, SealingKey]:
        if not isinstance(content, dict):
            self._malformed(f"{name} has no keys")
        return {name: self._key(name, value) for name, value in content.items()}

    def _key(self, name: str, value: object) -> SealingKey:
        try:
            raw = base64.b64decode(value if isinstance(value, str) else "", validate=True)
        except (binascii.Error, ValueError):
            self._malformed(f"key {name} is not base64")
        if len(raw) != KEY_BYTES:
            self._malformed(f"key {name} has not {KEY_BYTES} bytes")
        if is_weak(raw):
            raise key_file_error(self._path, f"holds a weak key, {name}", _CREATE)
        return SealingKey(name, raw)

    def _without_duplicates(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) != len(pairs):
            self._malformed("a name appears twice")
        return dict(pairs)

    def _malformed(self, why: str) -> NoReturn:
        raise key_file_error(self._path, f"is malformed: {why}", "Restore it from a backup.") from None


def is_weak(raw: bytes) -> bool:
    """True for keys no random generator makes: zeros, repetitions, sequences, typed text."""
    steps = {(b - a) % 256 for a, b in itertools.pairwise(raw)}
    typed = all(32 <= byte < 127 for byte in raw)
    return len(set(raw)) < _FEWEST_DISTINCT or len(steps) == 1 or typed


def create(path: Path, file: KeyFile) -> None:
    """Write a new file. An existing one is never touched: Failure KEY_UNAVAILABLE."""
    with _complete(path, file) as finished:
        try:
            os.link(finished, path)  # fails when `path` exists, as O_EXCL does, and is never half-written
        except FileExistsError:
            raise key_file_error(path, "exists already", "Use it, or name another file.") from None


def rewrite(path: Path, file: KeyFile) -> None:
    """Replace the file's content in one step."""
    with _complete(path, file) as finished:
        os.replace(finished, path)


def put_export(path: Path, file: KeyFile) -> bool:
    """Write a role's copy of the full file, or replace an older one; False: it is this one already.

    Raises Failure KEY_UNAVAILABLE for a file that is no copy, another installation's or another role's, and
    for a copy that is newer than the full file.
    """
    if not path.exists():
        create(path, file)
        return True
    before = read(path)
    role = "a gateway's copy" if before.derive is None else "an API's copy"
    if not before.export:
        raise key_file_error(path, "is a full key file, which no copy replaces", "Name another file.")
    if before.subject.reveal() != file.subject.reveal():
        raise key_file_error(path, "is of another installation", "Name another file, or move it away.")
    if (before.derive is None) is not (file.derive is None):
        raise key_file_error(path, f"is {role}", "Name another file, or move it away.")
    for purpose, roots in file.purposes.items():
        newest = before.purposes.get(purpose, roots).current
        if newest not in roots.keys:
            why = f"has the newer root {newest} of the purpose {purpose}, which the full key file lacks"
            raise key_file_error(path, why, "Restore the newest full key file, then export it.")
    if _serialised(before) == _serialised(file):
        return False
    rewrite(path, file)
    return True


@contextlib.contextmanager
def file_lock(path: Path) -> Generator[None]:
    """Hold the file's folder, so that two rotations don't lose one another's key."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


@contextlib.contextmanager
def _complete(path: Path, file: KeyFile) -> Generator[Path]:
    """A synced temporary file beside `path` with the content; always deleted afterwards."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(_serialised(file))
            handle.flush()
            os.fsync(handle.fileno())
        yield part
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        reason = error.strerror or "unknown"
        raise key_file_error(
            path, f"can't be written ({reason})", "Give this user a writable folder."
        ) from None
    finally:
        with contextlib.suppress(OSError):  # where nothing could be made there is nothing to remove
            part.unlink(missing_ok=True)


def _serialised(file: KeyFile) -> bytes:
    def text(key: SealingKey) -> str:
        return base64.b64encode(key.reveal()).decode()

    purposes = {
        purpose: {"current": roots.current, "keys": {name: text(key) for name, key in roots.keys.items()}}
        for purpose, roots in file.purposes.items()
    }
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "export": file.export,
        "purposes": purposes,
        "subject": text(file.subject),
    }
    if file.derive is not None:
        document["derive"] = text(file.derive)
    if file.derived or file.derive is None:
        document["derived"] = {name: text(key) for name, key in file.derived.items()}
    if file.derive is None:
        document["public"] = {name: base64.b64encode(key).decode() for name, key in file.public.items()}
    return json.dumps(document, indent=1).encode() + b"\n"
