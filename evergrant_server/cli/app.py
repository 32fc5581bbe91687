"""The commands and how they fail: 0 done, 1 failed with a code, 2 wrong usage or settings."""

import asyncio
import logging
import sys
import traceback
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from cyclopts import App, CycloptsError, Group, Parameter

from evergrant_server import __version__
from evergrant_server.checkout import require_own_packages
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.process_exit import exit_process
from evergrant_server.settings import BadSettings, Settings, load_settings

app = App(
    name="evergrant_server",
    help="Evergrant: managed OAuth. Name a connection, get a working token.",
    version=__version__,
    help_on_error=False,
    result_action="return_value",  # its own way of exiting would miss `leave`
)
_SETTINGS = Group("Settings (each is also EVERGRANT_… in the environment)")


@Parameter(name="*", group=_SETTINGS)
@dataclass
class Flags:
    """The settings most often given by hand; the others come from the environment."""

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
    """Run a worker. Start as many as you like, each with a data folder of its own or shared."""
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
    """Start a workflow for every live connection that has none. Harmless to repeat.

    Exits 1 when the store turns out to be older than the workflows, or when workflows that were
    asked didn't answer, and names the connections.

    Parameters
    ----------
    restart_older_than
        Also start anew what has run for longer, such as 30d or 12h: for runs that no worker
        of today can go on with.
    compare
        Ask every workflow for the generation it knows. It takes most of the time.
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
    """Check everything this installation stands on, and name the command that repairs it.

    Exits 0 when nothing is wrong, 1 otherwise.

    Parameters
    ----------
    output
        `text`, or `json`: a list of objects with `check`, `ok`, `detail` and `repair`.
    """
    settings = _settings(flags)
    from evergrant_server.cli import doctor as diagnosis

    if not asyncio.run(diagnosis.run(settings, output)):
        exit_process(1)


db = App(name="db", help="The database's schema, and the Temporal namespace.")
keys = App(name="keys", help="The key ring, and the first API key.")
audit = App(name="audit", help="The audit log.")
providers = App(name="providers", help="The catalogue of providers.")
for group in (db, keys, audit, providers):
    app.command(group)


@db.command
def upgrade(*, namespace: bool = True, flags: Flags | None = None) -> None:
    """Bring the schema up to date, and prepare the Temporal namespace.

    Parameters
    ----------
    namespace
        Also register search attributes and set the retention of closed runs.
    """
    settings = _settings(flags)
    from evergrant_server.cli import operate

    _run(operate.upgrade(settings, namespace))


@db.command
def current(*, flags: Flags | None = None) -> None:
    """Print the schema's version, and the newest this code knows."""
    settings = _settings(flags)
    from evergrant_server.cli import operate

    _run(operate.current(settings))


@keys.command
def create(*, flags: Flags | None = None) -> None:
    """Create the key file. An existing one is never overwritten."""
    settings = _settings(flags)
    from evergrant_server.cli import operate

    operate.create_keys(settings)


@keys.command
def rotate(lane: str, *, flags: Flags | None = None) -> None:
    """Add a new current root key to a lane (lease, refresh or intake). Old rows stay readable."""
    settings = _settings(flags)
    from evergrant_server.cli import operate

    operate.rotate_keys(settings, lane)


@keys.command
def export_api(out: Path, *, flags: Flags | None = None) -> None:
    """Write the key file for API processes: without the refresh lane."""
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

    Parameters
    ----------
    again
        Make another key when there is one already.
    out
        Write the key to this file (mode 0600) instead of printing it.
    """
    settings = _settings(flags)
    from evergrant_server.cli import operate

    _run(operate.bootstrap(settings, again, out))


@audit.command
def verify(*, flags: Flags | None = None) -> None:
    """Check every chain of the audit log; names the first place that doesn't hold."""
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
    """Look at every definition and vector, and say what contradicts itself, is loose or is missing.

    Asks no provider. Exits 0 when nothing is wrong, 1 otherwise, with file, field and repair.

    Parameters
    ----------
    catalog
        A folder of definitions; the checkout's own without one.
    vectors
        A folder of exchange vectors; the checkout's own without one.
    output
        `text`, or `json`: the counts, and problems with `file`, `field`, `what` and `repair`.
    """
    from evergrant_server.cli import catalogue

    if not catalogue.report_catalogue(catalog, vectors, output):
        exit_process(1)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit. Failures are one message on standard error."""
    try:
        require_own_packages()
        app(arguments, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        _fail(f"invalid_usage: {' '.join(str(error).split())}\n  {_usage_hint(error)}", 2)
    except BadSettings as error:
        _fail(f"invalid_settings: {error}", 2)
    except Failure as failure:
        _fail(_failure_message(failure), 1)
    except SystemExit as end:  # granian's, and --help's
        exit_process(end.code if isinstance(end.code, int) else int(end.code is not None))
    except KeyboardInterrupt:
        _fail("stopped", 130)
    except Exception as error:
        _fail(_unexpected_message(error), 1)
    exit_process(0)


def _usage_hint(error: CycloptsError) -> str:
    command = " ".join(("python -m evergrant_server", *(error.command_chain or ())))
    return f"See: {command} --help"


def _failure_message(failure: Failure) -> str:
    """Code, detail and repair. A detail that names the exact command needs no other repair."""
    said = f"{failure.code}: {failure.detail}"
    repaired = "key_file" in failure.context or "python -m evergrant_server" in failure.detail
    return said if repaired else f"{said}\n  {failure.rule.repair}"


def _unexpected_message(error: Exception) -> str:
    """What nobody has a name for: where it happened, without what it quotes."""
    if logging.getLogger().isEnabledFor(logging.DEBUG):
        traceback.print_exc()
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"
    return (
        f"{ErrorCode.INTERNAL}: {type(error).__name__} at {where}\n"
        "  Run it again with EVERGRANT_LOG_LEVEL=DEBUG for the whole story, and report it."
    )


def _settings(flags: Flags | None) -> Settings:
    """The settings. Commands read them before they import: a mistake is answered at once."""
    settings = (flags or Flags()).settings()
    logging.getLogger().setLevel(settings.log_level)
    return settings


def _run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def _fail(message: str, status: int) -> NoReturn:
    print(f"evergrant: {message}", file=sys.stderr)
    exit_process(status)
