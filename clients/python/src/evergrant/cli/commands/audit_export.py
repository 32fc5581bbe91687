"""`evergrant audit export`: the whole audit log as a file, gone on with after whatever cut it; its check."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from evergrant.cli.arguments import argument_error
from evergrant.cli.options import DEFAULTS, Options
from evergrant.cli.tables import Format, show_one
from evergrant.errors import EvergrantError
from evergrant.grant_files import file_error

if TYPE_CHECKING:
    from evergrant.audit.notes import VerifierKey

_END = b'{"page":'  # how the last line of a page begins
_BEGINNINGS = (_END, b'{"shard":', b'{"receipt":', b'{"history":')


class NotProven(EvergrantError):
    """What was offered doesn't show what it should."""

    default_code = "not_proven"
    default_repair = "Ask the installation's security team; keep this file, it may be the evidence."


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


def is_export(path: Path) -> bool:
    """Whether the file begins as an export does."""
    try:
        with path.open("rb") as file:
            return file.readline().startswith(_BEGINNINGS)
    except OSError:
        return False  # whoever reads it says why


def verify_export(
    path: Path,
    log: "VerifierKey",
    tenant: str | None,
    witnesses: "list[VerifierKey]",
    least: int,
    output: Format,
) -> None:
    """Check an export line by line. Raises NotProven that names the record, and for a file without its
    end."""
    from evergrant.audit.exports import ExportVerifier
    from evergrant.audit.receipts import ReceiptError

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
    show_one({"ok": True, **asdict(verified)}, output)


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
