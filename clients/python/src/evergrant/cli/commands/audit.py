"""`evergrant audit`: records, exports and receipts that are checked offline, kept checkpoints, a witness."""

import json
import os
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, NamedTuple

from cyclopts import App, Parameter

from evergrant.api.models import AuditProof
from evergrant.cli.arguments import Seconds, argument_error, in_utc, read_text, require_audit_extra
from evergrant.cli.commands.questions import SHARDS, evidence, wait_for_answer
from evergrant.cli.options import DEFAULTS, Options
from evergrant.cli.tables import show_one, show_rows
from evergrant.errors import BadRequest, EvergrantError
from evergrant.grant_files import file_error, write_private_file

if TYPE_CHECKING:
    from evergrant.audit.notes import VerifierKey

audit = App(name="audit")
audit.command(evidence)

_RECORDS = ("seq", "shard", "at", "action", "by", "detail")
_RETRY_S = 1.0
_END = b'{"page":'  # how the last line of a page begins
_BEGINNINGS = (_END, b'{"shard":', b'{"receipt":', b'{"history":')
_COSE_SIGN1 = b"\xd2"  # how a receipt in COSE begins: tag 18
_NOT_FOUND = "not_found"

LogKey = Annotated[str | None, Parameter(env_var="EVERGRANT_AUDIT_LOG")]


class NotProven(EvergrantError):
    """What was offered doesn't show what it should."""

    default_code = "not_proven"
    default_repair = "Ask the installation's security team; keep this file, it may be the evidence."


@audit.default
def show(
    connection_id: str | None = None,
    /,
    *,
    action: str | None = None,
    object: str | None = None,
    by: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Show the audit records of a connection, or of the whole tenant: all, or those that fit.

    Args:
        action: What happened, such as permit.put.
        object: The id of what it happened to.
        by: Who did it, such as app:sync.
        since: The first moment, for example 2026-05-01T00:00:00Z; without a zone it is UTC.
        until: The moment before which it happened.
    """
    if connection_id is not None and any((action, object, by, since, until)):
        raise argument_error("filters are of the whole tenant's log: name the connection with --object")
    since, until = in_utc(since), in_utc(until)
    with options.client() as client:
        filtered = client.audit_records(action=action, object=object, by=by, since=since, until=until)
        records = filtered if connection_id is None else client.audit(connection_id)
        show_rows(records, _RECORDS, options.output)


@audit.command
def receipt(
    record: str,
    /,
    *,
    out: Path | None = None,
    cose: bool = False,
    wait: Seconds = 30.0,
    options: Options = DEFAULTS,
) -> None:
    """Fetch the receipt of a record, and print it or write it to a file.

    Args:
        record: Its place, as a lease and `evergrant audit -o json` name it: SHARD/INDEX.
        out: The file to write.
        cose: In COSE (RFC 9942), for other programs; it has no signatures of witnesses.
        wait: How long to wait for the next checkpoint, which covers a record that is new.
    """
    end = time.monotonic() + wait
    with options.client() as client:
        while True:
            try:
                content = client.cose_receipt(record) if cose else _text_of(client.audit_proof(record))
                break
            except BadRequest as error:
                if error.code != _NOT_FOUND or time.monotonic() >= end:
                    raise
                time.sleep(_RETRY_S)
    if out is None:
        sys.stdout.buffer.write(content)
    else:
        out.write_bytes(content)


def _text_of(proof: AuditProof) -> bytes:
    return f"{json.dumps(asdict(proof), indent=1)}\n".encode()


@audit.command
def verify(
    file: Path | None = None,
    /,
    *,
    log: LogKey = None,
    tenant: str | None = None,
    record: str | None = None,
    witness: tuple[str, ...] = (),
    least: int | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Check a receipt or an export offline: that the installation's log has exactly these records.

    Without a file the server's workers verify the tenant's whole log, with the keys that they have, and print
    the head of each shard; what is wrong is named, and the command fails.

    Args:
        file: What `evergrant audit receipt` or `export` wrote; - is the standard input, for a receipt.
        log: The public key of the installation's log, or a file that holds it: from its security team.
        tenant: The tenant whose record it should be.
        record: The place that it should be of, as a lease named it.
        witness: The public key of a witness, or a file that holds it; may be repeated.
        least: How many of these witnesses must have signed too; all of them by default.
    """
    if file is None:
        _verify_server(options)
        return
    require_audit_extra()
    keys = [_key(text) for text in witness]
    demand = _Demand(_key(log), tenant, keys, len(keys) if least is None else least)
    is_export = record is None and _begins(file).startswith(_BEGINNINGS)
    verified = _verified_export(file, demand) if is_export else _verified_receipt(file, demand, record)
    show_one({"ok": True, **verified}, options.output)


@audit.command(name="export")
def export_audit(out: Path, /, *, histories: bool = False, options: Options = DEFAULTS) -> None:
    """Write the whole audit log to a file, as JSON Lines: each record with the text that its hash covers.

    Running it again with a file that was cut goes on behind its last whole page, and changes nothing else.

    Args:
        out: The file; made when it isn't there.
        histories: The exported runs of connections' workflows too.
    """
    with _opened(out) as file, options.client() as client:
        cursor, pages, is_whole = _end_of(file, out)
        while not is_whole:
            page = client.export_audit(cursor, histories=histories)
            file.write(page.content)
            file.flush()
            os.fsync(file.fileno())
            cursor, pages, is_whole = page.next, pages + 1, page.next is None
    show_one({"file": str(out), "pages": pages, "bytes": out.stat().st_size}, options.output)


@audit.command
def key(*, options: Options = DEFAULTS) -> None:
    """Print the public key of the installation's log: once, for those who check it from then on.

    It is as trustworthy as the server that gives it. Compare it with what others were given.
    """
    with options.client() as client:
        print(client.audit_checkpoint().log)


@audit.command
def checkpoint(*, kept: Path | None = None, log: LogKey = None, options: Options = DEFAULTS) -> None:
    """Fetch the log's newest checkpoint; with `--kept`, only if it extends the one in that file.

    A log that was rewritten, cut, or put back from an older copy doesn't. Keep the file where no operator of
    the installation can write.

    Args:
        kept: The file of the checkpoint that was fetched the last time. It is made, or replaced at once.
        log: The public key of the installation's log, or a file that holds it: from its security team.
    """
    require_audit_extra()
    from evergrant.audit.notes import Checkpoint, NoteError
    from evergrant.audit.tree import ProofError

    log_key, before = _key(log), None
    try:
        if kept is not None and kept.exists():
            before = Checkpoint.parse(read_text(kept))
            before.require_signed(log_key)
        with options.client() as client:
            reply = client.audit_checkpoint(since=None if before is None else before.size)
        newest = Checkpoint.parse(reply.checkpoint)
        newest.require_signed(log_key)
        if before is not None:
            newest.require_extends(before, reply.consistency)
    except BadRequest as error:
        if error.code != _NOT_FOUND or before is None:
            raise
        why = f"the log is smaller than {kept} says: it was cut, or an older copy was put back"
        raise NotProven(why, code="checkpoint") from None
    except (NoteError, ProofError) as error:
        raise NotProven(f"the log doesn't extend {kept}: {error}", code="checkpoint") from None
    if kept is None:
        print(str(newest.note), end="")
        return
    _replace(kept, str(newest.note))
    show_one({"log": newest.origin, "size": newest.size, "kept": str(kept)}, options.output)


@audit.command
def witness(
    *,
    log: tuple[str, ...],
    name: str | None = None,
    key_file: Path = Path("witness.key"),
    state: Path = Path("witness.db"),
    host: str = "127.0.0.1",
    port: int = 8484,
) -> None:
    """Run a witness: it signs the checkpoints of a log that only append to what it has signed before.

    It is for a machine of the security team's own, which nobody else administers. Readers of the log then
    know that it tells all of them one story. C2SP's protocol tlog-witness; Ctrl-C ends it.

    Args:
        log: The public key of a log, or a file that holds it; may be repeated.
        name: The witness's own name, which its signatures carry; needed once, when its key is made.
        key_file: The file of its private key, made when there is none.
        state: The file of what it has signed. Never put an older copy of it back: the witness would sign an
            older story again. Where it is lost, begin a new witness.
        host: The address to listen on.
        port: The port to listen on.
    """
    require_audit_extra()
    from evergrant.audit.witness import Witness, serving

    if key_file.exists() and not state.exists():
        why = f"{state} is gone: without it this witness would sign an older story again"
        raise argument_error(f"{why}. Put it back, or begin a new witness with another key file.")
    own_name, private = _own_key(key_file, name)
    signer = Witness(own_name, private, [_key(text) for text in log], state)
    with serving(signer, host, port) as server:
        print(f"witness {signer.key}", flush=True)
        print(f"listens on http://{host}:{server.server_port}", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    signer.close()


def _own_key(path: Path, name: str | None) -> tuple[str, Any]:
    """The witness's name and private key, made once. Raises BadRequest."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not path.exists():
        if name is None or not name.strip() or any(sign in name for sign in " +\n\t"):
            raise argument_error("a new witness needs --name, without spaces: such as security.example/w1")
        seed = Ed25519PrivateKey.generate().private_bytes_raw().hex()
        write_private_file(path, f"{name}\n{seed}\n")
    words = read_text(path).split()
    with suppress(ValueError):
        if len(words) == 2 and name in (None, words[0]):
            return words[0], Ed25519PrivateKey.from_private_bytes(bytes.fromhex(words[1]))
    raise argument_error(f"{path} holds no key of a witness{'' if name is None else f' named {name}'}")


def _key(text: str | None) -> "VerifierKey":
    """The key that the text is, or that the file of this name holds. Raises BadRequest."""
    from evergrant.audit.notes import NoteError, VerifierKey

    if text is None:
        raise argument_error("name the log's public key: --log KEY, or EVERGRANT_AUDIT_LOG")
    try:
        return VerifierKey.parse(text if "+" in text else read_text(Path(text)))
    except NoteError as error:
        raise argument_error(f"{text}: {error}") from None


def _replace(path: Path, text: str) -> None:
    """Write the file whole: a reader sees the old one or the new one."""
    beside = path.with_name(f".{path.name}.new")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


class _Demand(NamedTuple):
    """What a file is checked against: the log's key, the tenant, and who else must have signed."""

    log: "VerifierKey"
    tenant: str | None
    witnesses: "list[VerifierKey]"
    least: int


def _begins(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(20)
    except OSError:
        return b""  # whoever reads it says why


def _verified_receipt(path: Path, demand: _Demand, record: str | None) -> dict[str, Any]:
    """Check a receipt of either form. Raises NotProven that names the kind of what is wrong."""
    from evergrant.audit.cose import verify_cose
    from evergrant.audit.receipts import Flaw, Receipt, ReceiptError

    log, tenant, witnesses, least = demand
    try:
        if not _begins(path).startswith(_COSE_SIGN1):
            receipt = Receipt.parse(read_text(path))
            verified = receipt.verified(log, tenant=tenant, record=record, witnesses=witnesses, least=least)
        elif least:
            raise ReceiptError(Flaw.WITNESS, "in COSE it has no signatures of witnesses; fetch it without")
        else:
            verified = verify_cose(path.read_bytes(), log, tenant=tenant, record=record)
    except ReceiptError as error:
        raise NotProven(f"{path}: {error}", code=f"receipt_{error.kind}") from None
    times = {name: datetime.fromtimestamp(at, UTC).isoformat() for name, at in verified.witnesses.items()}
    return {**asdict(verified), "witnesses": times}


def _verified_export(path: Path, demand: _Demand) -> dict[str, Any]:
    """Check an export line by line. Raises NotProven that names the record, and for a file without its
    end."""
    from evergrant.audit.exports import ExportVerifier
    from evergrant.audit.receipts import ReceiptError

    log, tenant, witnesses, least = demand
    verifier = ExportVerifier(log, tenant=tenant, witnesses=witnesses, least=least)
    try:
        with path.open("rb") as file:
            for line in file:
                verifier.read(line)
        verified = verifier.verified()
    except ReceiptError as error:
        raise NotProven(f"{path}: {error}", code=f"export_{error.kind}") from None
    if not verified.whole:
        why = f"{path}: its last page is missing; `evergrant audit export` goes on with it"
        raise NotProven(why, code="export_cut")
    return asdict(verified)


def _verify_server(options: Options) -> None:
    """Have a worker verify the log. Raises NotProven that names the first record that isn't good."""
    with options.client() as client:
        question = wait_for_answer(client, client.ask_question("log"))
        lines = list(client.answer(question.id))
    for line in lines:
        if line.kind == "flaw":
            place, why = f"{line.facts['shard']}/{line.facts['index']}", line.facts["problem"]
            raise NotProven(f"record {place}: {line.facts['kind']}: {why}", code="log_flawed")
    show_rows([dict(line.facts) for line in lines], SHARDS, options.output)


def _opened(path: Path) -> BinaryIO:
    try:
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
    except OSError as error:
        raise file_error(path, error) from None


def _end_of(file: BinaryIO, path: Path) -> tuple[str | None, int, bool]:
    """The cursor behind the last whole page, how many pages there are, and whether they are all.

    What stands behind that page is cut off. Raises BadRequest for a file that isn't an export.
    """
    cursor, pages, end, is_whole = None, 0, 0, False
    for line in file:
        if line.startswith(_END) and line.endswith(b"\n"):
            try:
                cursor = json.loads(line)["page"]["next"]
            except (ValueError, KeyError, TypeError):
                raise _no_export(path) from None
            pages, end, is_whole = pages + 1, file.tell(), cursor is None
    if pages == 0 and file.tell():
        file.seek(0)
        if not file.readline().startswith(_BEGINNINGS):
            raise _no_export(path)
    file.seek(end)
    file.truncate()
    return cursor, pages, is_whole


def _no_export(path: Path) -> Exception:
    return argument_error(f"{path} is no export of the audit log; name a new file, or one that was cut")
