"""A witness: signs the checkpoints of logs that only append to what it has signed before.

The protocol is C2SP's (c2sp.org/tlog-witness, `add-checkpoint`). A log that shows two readers two stories
would have to show the witness one of them: the other has no cosignature. The witness keeps one row for each
log, and trusts nothing but the logs' public keys and its own file.
"""

import base64
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from evergrant.audit.notes import COSIGNATURE, Checkpoint, NoteError, VerifierKey, cosign
from evergrant.audit.tree import EMPTY_ROOT, HASH_BYTES, ProofError, require_consistent

PATH = "/add-checkpoint"
_MOST_HASHES = 63  # of a consistency proof
_LONGEST = 64 * 1024  # bytes of a request
_SLOWEST_S = 20.0  # until a client that sends nothing is dropped
_TEXT, _SIZE = "text/plain; charset=utf-8", "text/x.tlog.size"


class Answer(NamedTuple):
    """What a request is answered with."""

    status: HTTPStatus
    body: str
    type: str = _TEXT


class _Request(NamedTuple):
    older_size: int
    path: list[bytes]
    checkpoint: Checkpoint


class Witness:
    """Decides on checkpoints. Its file belongs to one process; requests may come from any thread."""

    def __init__(
        self,
        name: str,
        private: Ed25519PrivateKey,
        logs: Iterable[VerifierKey],
        file: Path,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Open the file, made when there is none. Raises sqlite3.Error, or OSError."""
        self._name, self._private, self._now = name, private, now
        self._logs: dict[str, list[VerifierKey]] = {}
        for log in logs:
            self._logs.setdefault(log.name, []).append(log)
        self._lock = threading.Lock()
        self._database = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS signed (origin TEXT PRIMARY KEY, size INTEGER NOT NULL,"
            " root BLOB NOT NULL, checkpoint TEXT NOT NULL, at INTEGER NOT NULL) WITHOUT ROWID"
        )

    @property
    def key(self) -> VerifierKey:
        """The key that readers of logs check this witness's cosignatures with."""
        return VerifierKey(self._name, COSIGNATURE, self._private.public_key().public_bytes_raw())

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def add_checkpoint(self, body: str) -> Answer:
        """The answer to one request: a cosignature once the checkpoint is kept, or why there is none."""
        try:
            request = _parsed(body)
        except NoteError as error:
            return Answer(HTTPStatus.BAD_REQUEST, f"{error}\n")
        checkpoint = request.checkpoint
        keys = self._logs.get(checkpoint.origin)
        if keys is None:
            return Answer(HTTPStatus.NOT_FOUND, f"the log {checkpoint.origin} isn't one of this witness's\n")
        try:
            if not checkpoint.note.signed_by(keys):
                return Answer(HTTPStatus.FORBIDDEN, "no key that the witness knows of this log signed it\n")
        except NoteError as error:
            return Answer(HTTPStatus.FORBIDDEN, f"{error}\n")
        if request.older_size > checkpoint.size:
            why = f"the tree before has {request.older_size} records, the checkpoint {checkpoint.size}\n"
            return Answer(HTTPStatus.BAD_REQUEST, why)
        with self._lock:  # what is compared is what is replaced
            return self._extended(request)

    def _extended(self, request: _Request) -> Answer:
        checkpoint = request.checkpoint
        row = self._database.execute(
            "SELECT size, root FROM signed WHERE origin = ?", (checkpoint.origin,)
        ).fetchone()
        size, root = row or (0, EMPTY_ROOT)
        if request.older_size != size:
            return Answer(HTTPStatus.CONFLICT, f"{size}\n", _SIZE)
        try:
            require_consistent(size, root, checkpoint.size, checkpoint.root, request.path)
            if checkpoint.size == 0 and checkpoint.root != EMPTY_ROOT:
                raise ProofError("a tree without records has another root")
        except ProofError as error:
            return Answer(HTTPStatus.UNPROCESSABLE_ENTITY, f"{error}\n")
        at = int(self._now())
        self._database.execute(
            "INSERT OR REPLACE INTO signed (origin, size, root, checkpoint, at) VALUES (?, ?, ?, ?, ?)",
            (checkpoint.origin, checkpoint.size, checkpoint.root, str(checkpoint.note), at),
        )
        return Answer(HTTPStatus.OK, str(cosign(checkpoint, self._name, self._private, at)))


def _parsed(body: str) -> _Request:
    """Raises NoteError."""
    head, separator, note = body.partition("\n\n")
    first, *lines = head.split("\n")
    size = first.removeprefix("old ")
    if not separator or size == first or not size.isdecimal() or str(int(size)) != size:
        raise NoteError("a request is a line `old <size>`, lines of hashes, an empty line and a checkpoint")
    if len(lines) > _MOST_HASHES:
        raise NoteError(f"a consistency proof has at most {_MOST_HASHES} hashes")
    return _Request(int(size), [_hash(line) for line in lines], Checkpoint.parse(note))


def _hash(line: str) -> bytes:
    try:
        value = base64.b64decode(line, validate=True)
    except ValueError:
        value = b""
    if len(value) != HASH_BYTES:
        raise NoteError("a line of the consistency proof is no hash in base64")
    return value


def serving(witness: Witness, host: str, port: int) -> ThreadingHTTPServer:
    """A server of this witness that listens already; its `serve_forever` answers. Raises OSError."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # a body waits for no acknowledgement of its head
        timeout = _SLOWEST_S
        server_version, sys_version = "evergrant-witness", ""

        def do_POST(self) -> None:
            """`add-checkpoint`, the witness's only call."""
            length = self.headers.get("Content-Length", "")
            if self.path != PATH:
                self._answer(Answer(HTTPStatus.NOT_FOUND, f"there is {PATH} alone\n"))
            elif not length.isdecimal() or int(length) > _LONGEST:
                self.close_connection = True
                self._answer(Answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {_LONGEST} bytes\n"))
            else:
                try:
                    body = self.rfile.read(int(length)).decode()
                except UnicodeDecodeError:
                    self._answer(Answer(HTTPStatus.BAD_REQUEST, "a request is UTF-8\n"))
                else:
                    self._answer(witness.add_checkpoint(body))

        def do_GET(self) -> None:
            """The witness's key, for a person who sets it up."""
            self._answer(Answer(HTTPStatus.OK, f"{witness.key}\n"))

        def _answer(self, answer: Answer) -> None:
            raw = answer.body.encode()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.type)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

    return ThreadingHTTPServer((host, port), Handler)


def last_signed(file: Path) -> list[tuple[str, int, int]]:
    """Of each log in a witness's file: its origin, its size, and when that was signed (POSIX seconds)."""
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
        return database.execute("SELECT origin, size, at FROM signed ORDER BY origin").fetchall()
