"""The commands and their flags; `main` runs one and turns its failure into a message and an exit status.

0: done, 1: failed with a code, 2: wrong usage or settings, 130: interrupted.
"""

import asyncio
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NoReturn

from cyclopts import App, CycloptsError, Group, Parameter, UnknownCommandError

from evergrant_server import __version__
from evergrant_server.checkout import require_own_packages
from evergrant_server.cli.durations import OptionalDuration
from evergrant_server.cli.process import CommandFailed
from evergrant_server.core.errors import Failure
from evergrant_server.gc_tuning import quick_imports
from evergrant_server.process_exit import exit_process, fail, failure_message, unexpected_message
from evergrant_server.settings import BadSettings, Settings, load_settings

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
    gateway_port: int | None = None
    egress_allow: str | None = None
    log_level: str | None = None

    def settings(self) -> Settings:
        return load_settings(**vars(self))

    def settings_of_dev(self) -> Settings:
        """Those of the installation that `dev` runs here, if it does."""
        from evergrant_server.cli.dev.settings_file import load_settings_of_dev

        return load_settings_of_dev(**vars(self))


@app.command
def dev(*, flags: Flags | None = None) -> None:
    """Run everything in one command: Temporal with its UI, the API, a worker and the gateway."""
    settings = settings_of_process(flags)
    from evergrant_server.cli.dev import run

    asyncio.run(run.run(settings))


@app.command(name="dev-api", show=False)
def dev_api() -> None:
    """The API of `dev`."""
    settings = settings_of_process(None)
    with quick_imports():
        from evergrant_server.cli.dev import api_process

    api_process.serve(settings)


@app.command(name="dev-worker", show=False)
def dev_worker() -> None:
    """The worker of `dev`."""
    settings = settings_of_process(None)
    with quick_imports():
        from evergrant_server.cli.dev import worker_process

    asyncio.run(worker_process.work(settings))


@app.command(name="dev-gateway", show=False)
def dev_gateway() -> None:
    """The gateway of `dev`."""
    settings = settings_of_process(None)
    with quick_imports():
        from evergrant_server.cli.dev import gateway_process

    gateway_process.serve(settings)


@app.command
def serve(*, mtls: Annotated[bool, Parameter(negative=())] = False, flags: Flags | None = None) -> None:
    """Run the API. Any number may run.

    Args:
        mtls: Listen on EVERGRANT_MTLS_SOCKET or EVERGRANT_MTLS_PORT, not on host and port, for the proxy that
            hands on the certificates of apps.
    """
    settings = settings_of_process(flags)
    with quick_imports():
        from evergrant_server.cli.serve import serve_api, serve_behind_mtls

    if mtls:
        serve_behind_mtls(settings)
    else:
        serve_api(settings)


@app.command
def gateway(*, flags: Flags | None = None) -> None:
    """Run the gateway, which sends apps' calls to providers' APIs. Any number may run."""
    settings = settings_of_process(flags)
    with quick_imports():
        from evergrant_server.cli.gateway.serve import serve_gateway

    serve_gateway(settings)


@app.command
def worker(*, flags: Flags | None = None) -> None:
    """Run a worker. Any number may run, with separate data folders or a shared one."""
    settings = settings_of_process(flags)
    with quick_imports():
        import worker as worker_process

    asyncio.run(worker_process.main(settings))


@app.command
def reconcile(
    *,
    restart_older_than: OptionalDuration = None,
    compare: bool = True,
    flags: Flags | None = None,
) -> None:
    """Start a workflow for every live connection that has none. Does nothing the second time.

    Exits 1, and names the connections, when the store is older than their workflows or when
    workflows don't answer.

    Args:
        restart_older_than: Also restart workflows that have run for longer, such as 30d or 43200 (seconds):
            for runs that the current workers can't continue.
        compare: Query every workflow for the generation it knows. This takes most of the time.
    """
    settings = settings_of(flags)
    from evergrant_server.cli import operate

    asyncio.run(operate.reconcile(settings, restart_older_than, compare))


@app.command
def doctor(
    *,
    output: Annotated[Literal["text", "json"], Parameter(name=["--output", "-o"])] = "text",
    flags: Flags | None = None,
) -> None:
    """Check everything that this installation needs, and name the command that repairs a problem.

    Exits 0 when nothing is wrong, 1 otherwise.

    Args:
        output: `text`, or `json`: a list of objects with `check`, `ok`, `detail`, `repair` and `because`.
    """
    settings = settings_of(flags)
    with quick_imports():
        from evergrant_server.cli.doctor import report

    if not asyncio.run(report.run(settings, output)):
        exit_process(1)


@app.command
def openapi() -> None:
    """Print the OpenAPI document of the HTTP API."""
    from evergrant_server.api.app import openapi_document

    print(json.dumps(openapi_document()))


_OPERATE = "evergrant_server.cli.operate"  # slow to import
app.command(f"{_OPERATE}:db", help="The database's schema, and the Temporal namespace.")
app.command(f"{_OPERATE}:keys", help="The key ring, and the first API key.")
app.command(f"{_OPERATE}:audit_log", name="audit", help="The audit log.")
app.command("evergrant_server.cli.authority:authority", help="The authenticators of rows.")
app.command("evergrant_server.cli.tenants:tenants", help="Which tenants are served.")
app.command("evergrant_server.cli.providers:providers", help="The provider catalogue.")


def settings_of_process(flags: Flags | None) -> Settings:
    """Load the settings of a process that serves. Before slow imports, so a mistake is reported at once."""
    settings = (flags or Flags()).settings()
    logging.getLogger().setLevel(settings.log_level)
    return settings


def settings_of(flags: Flags | None) -> Settings:
    """Load the settings of a command that works on an installation: with no other given, that of `dev`."""
    settings = (flags or Flags()).settings_of_dev()
    logging.getLogger().setLevel(settings.log_level)
    return settings


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit. A failure is one message on standard error."""
    try:
        require_own_packages()
        app(arguments, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        fail(usage_message(error), 2)
    except BadSettings as error:
        fail(f"invalid_settings: {error}", 2)
    except Failure as failure:
        fail(failure_message(failure), 1)
    except CommandFailed as failed:
        fail(failed.message, failed.status)
    except SystemExit as error:  # granian and --help exit so
        exit_process(error.code if isinstance(error.code, int) else int(error.code is not None))
    except KeyboardInterrupt:
        fail("stopped", 130)
    except Exception as error:
        fail(unexpected_message(error), 1)
    exit_process(0)


def usage_message(error: CycloptsError) -> str:
    """What is wrong with a command line, and the command for its help."""
    chain, unused = tuple(error.command_chain or ()), error.unused_tokens or ["--help"]
    message = f"invalid_usage: {' '.join(str(error).split())}"
    if isinstance(error, UnknownCommandError) and not chain:
        message += f"\n  If it is a command for apps, integrations or connections: evergrant {unused[0]}"
    return f"{message}\n  See: {' '.join(('python -m evergrant_server', *chain))} --help"
