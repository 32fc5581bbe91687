"""`evergrant import`, `export` and `export-key`: existing grants in, sealed grants out."""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, BinaryIO, TextIO

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from evergrant.calls.transfer import IMPORT_BATCH_SIZE, Export, ImportOutcome, ImportStatus, SealedPage
from evergrant.cli.output import DEFAULTS, Options
from evergrant.cli.show.tables import Format, printable, show_one
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
from evergrant.retries import Deadline
from evergrant.sync_client import Evergrant

_BATCH_BYTES = 600_000  # a request's body may have 1 MiB
_MAX_REPORTED = 1000  # failed lines in the JSON report; all of them are counted
_POLL_EVERY = timedelta(seconds=1)


@dataclass
class _Report:
    """The outcomes of a file's lines, counted, and the failures by line number."""

    path: str
    as_json: bool
    counts: Counter[str] = field(default_factory=Counter[str])
    failures: list[dict[str, object]] = field(default_factory=list[dict[str, object]])
    last_line: int = 0

    def add(self, number: int, outcome: ImportOutcome) -> None:
        self.last_line = number
        self.counts[outcome.status.value] += 1
        if outcome.verification is not None:
            self.counts[outcome.verification] += 1
        if outcome.failed:
            self._add_failure(number, outcome.code or "unknown", outcome.detail or "")

    def add_invalid(self, line: InvalidLine) -> None:
        self.last_line = line.number
        self.counts[ImportStatus.INVALID.value] += 1
        self._add_failure(line.number, line.code, line.detail)

    def _add_failure(self, number: int, code: str, detail: str) -> None:
        if len(self.failures) < _MAX_REPORTED:
            self.failures.append({"line": number, "code": code, "detail": detail})
        if not self.as_json:
            print(f"{self.path}:{number}: {code}: {printable(detail)}", file=sys.stderr)

    def show(self, seconds: float, options: Options) -> None:
        row: dict[str, object] = {
            name: self.counts[name]
            for name in ("imported", "would_import", "exists", "invalid", "verified", "unverified", "failed")
        }
        row["seconds"] = round(seconds, 1)
        if options.output is not Format.TABLE:
            row["failures"] = sorted(self.failures, key=lambda failure: str(failure["line"]).zfill(12))
        show_one(row, options.output)

    @property
    def status(self) -> int:
        return 1 if self.counts["invalid"] or self.counts["failed"] else 0


def import_file(
    file: Path,
    /,
    *,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    verify: bool = True,
    key: Path | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Import existing grants from a file with a JSON object on each line. Running it again changes nothing.

    Args:
        dry_run: Check every line; import none.
        verify: Refresh each grant once after its import. First stop every other system that refreshes it.
        key: Private key of a sealed export.
    """
    decrypter = LineDecrypter(key) if key else None
    started = time.monotonic()
    report = _Report(str(file), options.output is not Format.TABLE)
    try:
        source = file.open("rb")
    except OSError as error:
        raise file_error(file, error) from None
    with source, options.client() as client, _progress(source) as advance:
        try:
            for batch in _batches(read_lines(source, decrypter), report):
                items = [line.item for line in batch]
                outcomes = client.import_connections(items, dry_run=dry_run, verify=verify)
                for line, outcome in zip(batch, outcomes, strict=True):
                    report.add(line.number, outcome)
                advance(batch[-1].end)
        except (EvergrantError, KeyboardInterrupt):
            print(f"evergrant: stopped after line {report.last_line}; run it again to go on", file=sys.stderr)
            report.show(time.monotonic() - started, options)
            raise
    report.show(time.monotonic() - started, options)
    if report.status:
        sys.exit(report.status)


def _batches(lines: Iterator[ParsedLine | InvalidLine], report: _Report) -> Iterator[list[ParsedLine]]:
    """The valid lines in batches of one request; invalid lines go to the report."""
    batch: list[ParsedLine] = []
    start = end = 0
    for line in lines:
        if isinstance(line, InvalidLine):
            report.add_invalid(line)
            end = line.end
            continue
        if batch and (len(batch) == IMPORT_BATCH_SIZE or line.end - start > _BATCH_BYTES):
            yield batch
            batch, start = [], end
        batch.append(line)
        end = line.end
    if batch:
        yield batch


@contextmanager
def _progress(source: BinaryIO) -> Generator[Callable[[int], None]]:
    """A progress bar over the file's bytes, on a terminal only."""
    size = os.fstat(source.fileno()).st_size
    columns = (TextColumn("importing"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task("import", total=size or None)

        def advance(end: int) -> None:
            bar.update(task, completed=end)

        yield advance


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
    try:
        written = os.fdopen(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii")
    except OSError as error:
        raise file_error(out, error) from None
    done = False
    try:
        with written, options.client() as client:
            export = client.start_export(public, integration=integration, provider=provider, subject=subject)
            first = _sealed(client, export, timedelta(seconds=wait))
            total = _fetch(client, export.id, first, written)
            written.flush()
            os.fsync(written.fileno())
            dropped = client.drop_export(export.id)  # the file is on disk: the server's copy can go
        done = True
    finally:
        if not done:
            out.unlink(missing_ok=True)  # a partial export looks like a complete one
    row = {
        "id": export.id,
        "exported": total,
        "skipped": dropped.skipped,
        "key": dropped.key,
        "file": str(out),
    }
    show_one(row, options.output)


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
