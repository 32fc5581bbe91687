"""The commands and their flags. `main` runs them."""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Group, Parameter

from evergrant_server import __version__
from evergrant_server.process_exit import exit_process
from evergrant_server.settings import Settings, load_settings

app = App(
    name="evergrant_server",
    help="Evergrant: managed OAuth. Name a connection, get a working token.",
    version=__version__,
    help_on_error=False,
    result_action="return_value",  # cyclopts would exit without `exit_process`
)
_SETTINGS = Group("Settings (each is also EVERGRANT_… in the environment)")


@Parameter(name="*", group=_SETTINGS)
@dataclass
class Flags:
    """The settings that operators give most often; the others come from the environment."""

    data_dir: Path | None = None
    database_url: str | None = None
    key_file: Path | None = None
    host: str | None = None
    port: int | None = None
    public_url: str | None = None
    temporal_address: str | None = None
    temporal_port: int | None = None
    temporal_ui_port: int | None = None
    egress_allow: str | None = None
    log_level: str | None = None

    def settings(self) -> Settings:
        return load_settings(**vars(self))


@app.command
def dev(*, flags: Flags | None = None) -> None:
    """Run everything in one command: Temporal with its UI, the API and a worker."""
    settings = _settings(flags)
    from evergrant_server.cli import dev as development

    _run(development.run(settings))


@app.command
def serve(*, flags: Flags | None = None) -> None:
    """Run the API."""
    settings = _settings(flags)
    from evergrant_server.cli.serve import serve_api

    serve_api(settings)


@app.command
def worker(*, flags: Flags | None = None) -> None:
    """Run a worker. Any number may run, with separate data folders or a shared one."""
    settings = _settings(flags)
    import worker as worker_process

    _run(worker_process.main(settings))


@app.command
def reconcile(
    *,
    restart_older_than: timedelta | None = None,
    compare: bool = True,
    flags: Flags | None = None,
) -> None:
    """Start a workflow for every live connection that has none. Does nothing the second time.

    Exits 1, and names the connections, when the store is older than their workflows or when
    workflows don't answer.

    Args:
        restart_older_than: Also restart workflows that have run for longer, such as 30d or 12h: for runs
            that the current workers can't continue.
        compare: Query every workflow for the generation it knows. This takes most of the time.
    """
    settings = _settings(flags)
    from evergrant_server.cli import operate

    _run(operate.reconcile(settings, restart_older_than, compare))


@app.command
def doctor(
    *,
    output: Annotated[Literal["text", "json"], Parameter(name=["--output", "-o"])] = "text",
    flags: Flags | None = None,
) -> None:
    """Check everything that this installation needs, and name the command that repairs a problem.

    Exits 0 when nothing is wrong, 1 otherwise.

    Args:
        output: `text`, or `json`: a list of objects with `check`, `ok`, `detail` and `repair`.
    """
    settings = _settings(flags)
    from evergrant_server.cli.doctor import report

    if not asyncio.run(report.run(settings, output)):
        exit_process(1)


db = App(name="db", help="The database's schema, and the Temporal namespace.")
keys = App(name="keys", help="The key ring, and the first API key.")
audit = App(name="audit", help="The audit log.")
providers = App(name="providers", help="The provider catalogue.")
for group in (db, keys, audit, providers):
    app.command(group)


@db.command
def upgrade(*, namespace: bool = True, flags: Flags | None = None) -> None:
    """Bring the schema up to date, and prepare the Temporal namespace.

    Args:
        namespace: Also register search attributes and set the retention of closed runs.
    """
    settings = _settings(flags)
    from evergrant_server.cli import operate

    _run(operate.upgrade(settings, namespace))


@db.command
def current(*, flags: Flags | None = None) -> None:
    """Print the schema's version, and the newest that this release knows."""
    settings = _settings(flags)
    from evergrant_server.cli import operate

    _run(operate.current(settings))


@keys.command
def create(*, flags: Flags | None = None) -> None:
    """Create the key file. Never overwrites an existing one."""
    settings = _settings(flags)
    from evergrant_server.cli import operate

    operate.create_keys(settings)


@keys.command
def rotate(purpose: str, *, flags: Flags | None = None) -> None:
    """Add a new current root key for a purpose (lease, refresh or intake). Old rows stay readable."""
    settings = _settings(flags)
    from evergrant_server.cli import operate

    operate.rotate_keys(settings, purpose)


@keys.command
def export_api(out: Path, *, flags: Flags | None = None) -> None:
    """Write the key file for API processes: without the refresh keys."""
    settings = _settings(flags)
    from evergrant_server.cli import operate

    operate.export_api_keys(settings, out)


@keys.command
def bootstrap(
    *,
    again: Annotated[bool, Parameter(negative=())] = False,
    out: Path | None = None,
    flags: Flags | None = None,
) -> None:
    """Create the app `admin` and print its API key, once.

    Args:
        again: Create another key even if there is one already.
        out: Write the key to this file (mode 0600) instead of printing it.
    """
    settings = _settings(flags)
    from evergrant_server.cli import operate

    _run(operate.bootstrap(settings, again, out))


@audit.command
def verify(*, flags: Flags | None = None) -> None:
    """Check every hash chain of the audit log, and name the first record that doesn't match."""
    settings = _settings(flags)
    from evergrant_server.cli import operate

    _run(operate.verify_audit(settings))


@providers.command(name="check")
def check_providers(
    *,
    catalog: Path | None = None,
    vectors: Path | None = None,
    output: Annotated[Literal["text", "json"], Parameter(name=["--output", "-o"])] = "text",
) -> None:
    """Check every provider definition and exchange vector for contradictions and omissions.

    Sends no request. Exits 0 when nothing is wrong, otherwise 1 with file, field and repair.

    Args:
        catalog: A folder of definitions; default: the checkout's own.
        vectors: A folder of exchange vectors; default: the checkout's own.
        output: `text`, or `json`: the counts, and problems with `file`, `field`, `what` and `repair`.
    """
    from evergrant_server.cli import provider_check

    if not provider_check.run(catalog, vectors, output):
        exit_process(1)


def _settings(flags: Flags | None) -> Settings:
    """Load the settings. Commands do so before slow imports, so a mistake is reported at once."""
    settings = (flags or Flags()).settings()
    logging.getLogger().setLevel(settings.log_level)
    return settings


def _run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)
