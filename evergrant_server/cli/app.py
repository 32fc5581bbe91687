"""The commands and their flags; `main` runs one and turns its failure into a message and an exit status.

0: done, 1: failed with a code, 2: wrong usage or settings, 130: interrupted.
"""

import asyncio
import json
from typing import Annotated, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter, UnknownCommandError

from evergrant_server import __version__
from evergrant_server.checkout import require_own_packages
from evergrant_server.cli.flags import Flags, OptionalDuration, settings_of, settings_of_process
from evergrant_server.cli.process import CommandFailed
from evergrant_server.core.errors import Failure
from evergrant_server.process import exit_process, fail, failure_message, quick_imports, unexpected_message
from evergrant_server.settings import BadSettings

app = App(
    name="evergrant_server",
    help="Evergrant: managed OAuth. Name a connection, get a working token.",
    version=__version__,
    help_on_error=False,
    result_action="return_value",  # cyclopts would exit without `exit_process`
)


@app.command
def dev(*, flags: Flags | None = None) -> None:
    """Run everything in one command: Temporal with its UI, the API, a worker and the gateway."""
    settings = settings_of_process(flags)
    from evergrant_server.cli.dev import run

    asyncio.run(run.run(settings, main))


@app.command(name="dev-api", show=False)
def dev_api() -> None:
    """The API of `dev`."""
    settings = settings_of_process(None)
    from evergrant_server.cli.dev import services

    services.serve_api(settings)


@app.command(name="dev-worker", show=False)
def dev_worker() -> None:
    """The worker of `dev`."""
    settings = settings_of_process(None)
    from evergrant_server.cli.dev import services

    asyncio.run(services.work(settings))


@app.command(name="dev-gateway", show=False)
def dev_gateway() -> None:
    """The gateway of `dev`."""
    settings = settings_of_process(None)
    from evergrant_server.cli.dev import services

    services.serve_gateway(settings)


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
    """Run the gateway, which sends apps' calls to providers' APIs. Any number may run.

    In a folder of `dev` it has that one's settings: its database, Temporal, ports and hosts.
    """
    settings = settings_of(flags)
    with quick_imports():
        from evergrant_server.cli.serve_gateway import serve_gateway

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
    *, restart_older_than: OptionalDuration = None, compare: bool = True, flags: Flags | None = None
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


doctors = App(name="doctor")
app.command(doctors)


@doctors.default
def doctor(
    *,
    output: Annotated[Literal["text", "json"], Parameter(name=["--output", "-o"])] = "text",
    role: Literal["api", "gateway", "worker", "operator"] | None = None,
    flags: Flags | None = None,
) -> None:
    """Check everything that this installation needs, and name the command that repairs a problem.

    Exits 0 when nothing is wrong, 1 otherwise.

    Args:
        output: `text`, or `json`: a list of objects with `check`, `ok`, `detail`, `repair` and `because`.
        role: Whose container this is. Without it: the role that the key file is for; with a key service, an
            operator's.
    """
    settings = settings_of(flags)
    with quick_imports():
        from evergrant_server.cli.doctor import report

    if not asyncio.run(report.run(settings, output, role)):
        exit_process(1)


@doctors.command(name="upgrade")
def doctor_upgrade(
    *,
    output: Annotated[Literal["text", "json"], Parameter(name=["--output", "-o"])] = "text",
    flags: Flags | None = None,
) -> None:
    """Say which release's code runs where, what the next step of an upgrade is, and whether it is safe now.

    Run it with the newer release's code; for a roll-back, with that of the release before. Exits 0 when the
    next step is safe or nothing is left to do, 1 otherwise.

    Args:
        output: `text`, or `json`: an object with `database`, `code`, `processes` and `next`.
    """
    settings = settings_of(flags)
    with quick_imports():
        from evergrant_server.cli.doctor import upgrade

    if not asyncio.run(upgrade.run(settings, output)):
        exit_process(1)


@app.command
def openapi() -> None:
    """Print the OpenAPI document of the HTTP API."""
    from evergrant_server.api.app import openapi_document

    print(json.dumps(openapi_document()))


# each is imported when one of its commands runs: they are slow to import
app.command("evergrant_server.cli.db:db", help="The database's schema, and the Temporal namespace.")
app.command("evergrant_server.cli.keys:keys", help="The key ring, and the first API key.")
app.command("evergrant_server.cli.operate:audit_log", name="audit", help="The audit log.")
app.command("evergrant_server.cli.authority:authority", help="The authenticators of rows.")
app.command("evergrant_server.cli.backup.commands:backup", help="Backups, drills and the restore.")
app.command("evergrant_server.cli.tenants:tenants", help="Which tenants are served.")
app.command("evergrant_server.cli.providers:providers", help="The provider catalogue.")
app.command("evergrant_server.cli.region:region_app", name="region", help="A second region, and a fail-over.")


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
