"""`evergrant import`: reads a file of grants, sends it in batches, and says what became of each line."""

import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO, TextIO

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from evergrant.api.commands import SealedPage
from evergrant.api.imports import IMPORT_BATCH_SIZE, ImportItem, ImportOutcome
from evergrant.api.models import Export
from evergrant.cli.import_report import Report
from evergrant.cli.options import DEFAULTS, Options
from evergrant.cli.tables import Format, show_one
from evergrant.errors import BadRequest, EvergrantError
from evergrant.grant_files import (
    InvalidLine,
    LineDecrypter,
    ParsedLine,
    file_error,
    generate_key_pair,
    read_lines,
    read_public_key,
    write_private_file,
)
from evergrant.grant_sources.auth0 import Auth0
from evergrant.grant_sources.items import GrantSource, Names
from evergrant.grant_sources.nango import Nango, NangoKey
from evergrant.grant_sources.rows import SkippedLine, csv_rows, json_rows, lines_of
from evergrant.grant_sources.table import Table
from evergrant.retries import Deadline
from evergrant.sync_client import Evergrant

_BATCH_BYTES = 600_000  # a request's body may have 1 MiB

Advance = Callable[[int, int], None]
Line = ParsedLine | InvalidLine | SkippedLine


class Source(StrEnum):
    NANGO = "nango"
    AUTH0 = "auth0"
    TABLE = "table"


def import_file(
    file: Path,
    /,
    *,
    source: Annotated[Source | None, Parameter(name="--from")] = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    verify: bool = True,
    key: Path | None = None,
    integration: tuple[str, ...] = (),
    subject: str | None = None,
    column: tuple[str, ...] = (),
    options: Options = DEFAULTS,
) -> None:
    """Import existing grants from a file. Running it again goes on where it was, and changes nothing else.

    Args:
        source: Whose it is: nango, auth0, table (CSV with a header). Without it, a JSON object a line.
        dry_run: Check every line, and say what would be made; import none.
        verify: Refresh each grant once after its import. First stop every other system that refreshes it.
        key: Private key of a sealed export; with --from nango, a file with NANGO_ENCRYPTION_KEY.
        integration: THEIRS=OURS renames one of the file's integrations; OURS alone is that of every row.
        subject: The field, or column, that names the subject: tags.end_user_id, app_metadata.id.
        column: With --from table, MEMBER=COLUMN says which column holds it: access_token=oauth_token.
    """
    names, columns = _names(integration, subject), dict(_pairs("--column", column))
    _require_fitting(source, key, names, columns)
    with _opened(file) as opened:
        lines, mapping = _lines(opened, source, key, names, columns)
        report = Report(str(file), options.output is not Format.TABLE, dry_run, mapping)
        started = time.monotonic()
        try:
            with options.client() as client, progress(opened) as advance:
                send = partial(client.import_connections, dry_run=dry_run, verify=verify)
                _import(_batches(_distinct(lines), report), report, send, advance)
        except (EvergrantError, KeyboardInterrupt):
            print(f"evergrant: stopped after line {report.last_line}; run it again to go on", file=sys.stderr)
            report.show(time.monotonic() - started, options)
            raise
    report.show(time.monotonic() - started, options)
    sys.exit(report.status or None)


def _opened(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise file_error(file, error) from None


def _import(
    batches: Iterator[list[ParsedLine]],
    report: Report,
    send: Callable[[Iterable[ImportItem]], Iterator[ImportOutcome]],
    advance: Advance,
) -> None:
    done = 0
    for batch in batches:
        for line, outcome in zip(batch, send([line.item for line in batch]), strict=True):
            report.add(line, outcome)
        done += len(batch)
        advance(batch[-1].end, done)


def _require_fitting(source: Source | None, key: Path | None, names: Names, columns: dict[str, str]) -> None:
    """Raise BadRequest for an option that the file's format doesn't have."""
    if source is None and (names != Names({}) or columns):
        raise _bad("--integration, --subject and --column are for rows of another system: give --from")
    if columns and source is not Source.TABLE:
        raise _bad("--column is for a table")
    if key is not None and source in (Source.AUTH0, Source.TABLE):
        raise _bad(f"--key is not for {source}")


def _lines(
    opened: BinaryIO, source: Source | None, key: Path | None, names: Names, columns: dict[str, str]
) -> tuple[Iterator[Line], dict[str, str]]:
    """The file's lines as items, and which of a row's fields each member is read from."""
    made: GrantSource
    match source:
        case None:
            return read_lines(opened, LineDecrypter(key) if key else None), {}
        case Source.NANGO:
            made = Nango(names, NangoKey(key) if key else None)
            rows = json_rows(opened, "connections")
        case Source.AUTH0:
            made = Auth0(names)
            rows = json_rows(opened, "users")
        case Source.TABLE:
            made, rows = csv_rows(opened, lambda header: Table(names, columns, header))
    return lines_of(rows, made), dict(made.mapping)


def _distinct(lines: Iterator[Line]) -> Iterator[Line]:
    """Refuses a line whose names an earlier one has: only the first grant of them can be imported."""
    seen: dict[int, int] = {}  # the line of each, by hash: a file may have millions
    for line in lines:
        if isinstance(line, ParsedLine) and "subject" in line.item:
            label = line.item.get("label", "default")
            names = hash((str(line.item.get("integration")), str(line.item["subject"]), str(label)))
            if names in seen:
                why = f"line {seen[names]} has the same integration, subject and label"
                yield InvalidLine(line.number, line.end, "duplicate", why)
                continue
            seen[names] = line.number
        yield line


def _batches(lines: Iterator[Line], report: Report) -> Iterator[list[ParsedLine]]:
    """The valid lines in batches of one request; the others go to the report."""
    batch: list[ParsedLine] = []
    start = end = 0
    for line in lines:
        if not isinstance(line, ParsedLine):
            if isinstance(line, InvalidLine):
                report.add_invalid(line)
            else:
                report.add_skipped(line.reason)
            end = line.end
            continue
        if batch and (len(batch) == IMPORT_BATCH_SIZE or line.end - start > _BATCH_BYTES):
            yield batch
            batch, start = [], end
        batch.append(line)
        end = line.end
    if batch:
        yield batch


def _names(integrations: tuple[str, ...], subject: str | None) -> Names:
    renamed = [name for name in integrations if "=" in name]
    every = [name for name in integrations if "=" not in name]
    if len(every) > 1 or (every and renamed):
        raise _bad("--integration: one OURS for every row, or THEIRS=OURS for each of theirs")
    return Names(dict(_pairs("--integration", renamed)), every[0] if every else None, subject)


def _pairs(option: str, options: "tuple[str, ...] | list[str]") -> Iterator[tuple[str, str]]:
    for pair in options:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise _bad(f"{option} takes NAME=VALUE")
        yield name, value


def _bad(detail: str) -> BadRequest:
    return BadRequest(detail, code="invalid_request", repair="See: evergrant import --help.")


LINE_EVERY_S = 10.0


class _Rate(TextColumn):
    """Lines a second since the beginning."""

    def render(self, task: Task) -> Text:
        elapsed = task.elapsed or 0
        return Text(f"{task.fields['lines'] / elapsed:.0f} a second" if elapsed > 1 else "")


@contextmanager
def progress(source: BinaryIO) -> Generator[Advance]:
    """Yields what is called with the bytes and the lines that are done."""
    size = os.fstat(source.fileno()).st_size
    if not sys.stderr.isatty():
        yield _told_in_lines(size)
        return
    columns = (TextColumn("importing"), BarColumn(), TaskProgressColumn(), _Rate(""), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("import", total=size or None, lines=0)

        def advance(end: int, lines: int) -> None:
            bar.update(task, completed=end, lines=lines)

        yield advance


def _told_in_lines(size: int) -> Advance:
    started = last = time.monotonic()

    def advance(end: int, lines: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < LINE_EVERY_S:
            return
        last = now
        rate = lines / (now - started)
        left = f", {(size - end) * (now - started) / end:.0f} s left" if size and end else ""
        print(f"evergrant: {lines} lines, {rate:.0f} a second{left}", file=sys.stderr, flush=True)

    return advance


_POLL_EVERY = timedelta(seconds=1)


def export_file(
    *,
    to: Path,
    out: Path,
    integration: str | None = None,
    provider: str | None = None,
    subject: str | None = None,
    wait: float = 3600,
    options: Options = DEFAULTS,
) -> None:
    """Export every live grant to a file, each line sealed to a public key, for import elsewhere.

    Args:
        to: Public key: an X25519 or P-256 JWK, or PEM. `evergrant export-key` makes a pair.
        out: A new file for the sealed lines.
        wait: Seconds to wait for the server to seal them.
    """
    public = read_public_key(to)
    with _whole_file(out) as written, options.client() as client:
        export = client.start_export(public, integration=integration, provider=provider, subject=subject)
        first = _sealed(client, export, timedelta(seconds=wait))
        total = _fetch(client, export.id, first, written)
        written.flush()
        os.fsync(written.fileno())
        dropped = client.drop_export(export.id)  # the file is on disk: the server's copy can go
    row = {
        "id": export.id,
        "exported": total,
        "skipped": dropped.skipped,
        "key": dropped.key,
        "file": str(out),
    }
    show_one(row, options.output)


@contextmanager
def _whole_file(path: Path) -> Generator[TextIO]:
    """A new file, which is removed after a failure: a partial export looks like a complete one."""
    try:
        file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii")
    except OSError as error:
        raise file_error(path, error) from None
    try:
        with file:
            yield file
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _sealed(client: Evergrant, export: Export, limit: timedelta) -> SealedPage:
    """The first page, once the server has sealed all lines. Raises TimeoutError after `limit`."""
    deadline = Deadline(limit)
    while True:
        pause = deadline.poll_pause_s(_POLL_EVERY)
        page = client.export_lines(export.id)
        if isinstance(page, SealedPage):
            return page
        time.sleep(min(pause, 0.2 if page.exported == 0 else 1.0))


def _fetch(client: Evergrant, export_id: str, page: Export | SealedPage, written: TextIO) -> int:
    fetched = 0
    while isinstance(page, SealedPage):
        for line in page.lines:
            written.write(line + "\n")
        fetched += len(page.lines)
        if fetched >= page.exported or not page.lines:
            return fetched
        page = client.export_lines(export_id, fetched)
    raise BadRequest(
        "the export was started again while it was fetched", code="export_changed", repair="Run it again."
    )


def export_key(private: Path, public: Path, /) -> None:
    """Make a key pair for `export --to PUBLIC` and `import --key PRIVATE`. The keys stay on this machine."""
    private_jwk, public_jwk = generate_key_pair()
    write_private_file(private, private_jwk)
    write_private_file(public, public_jwk)
    print(f"private: {private} (keep it)\npublic:  {public}")
