"""`evergrant export` and `export-key`: sealed grants out."""

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import TextIO

from evergrant.calls.transfer import Export, SealedPage
from evergrant.cli.output import DEFAULTS, Options
from evergrant.cli.show.tables import show_one
from evergrant.errors import BadRequest
from evergrant.grant_files import file_error, generate_key_pair, read_public_key, write_private_file
from evergrant.retries import Deadline
from evergrant.sync_client import Evergrant

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
