"""The whole command, and the commands that belong to no other module: token, proof, audit.

Exit statuses: 0 done, 1 refused or failed, 2 misused, 130 interrupted.
"""

import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from cyclopts import App, CycloptsError

from evergrant.calls.leases import LeaseOptions
from evergrant.cli.access import access
from evergrant.cli.access_requests import access_requests
from evergrant.cli.agents.agents import agents
from evergrant.cli.agents.call_approvals import approvals
from evergrant.cli.agents.delegations import delegations
from evergrant.cli.agents.token_families import clients
from evergrant.cli.apps import apps
from evergrant.cli.checkout import providers
from evergrant.cli.connections import connect, connections
from evergrant.cli.gateway.mcp import mcp
from evergrant.cli.gateway.proxy import proxy
from evergrant.cli.given.usage import usage_error
from evergrant.cli.given.values import Scopes, Seconds
from evergrant.cli.importing.command import import_file
from evergrant.cli.integrations import integrations
from evergrant.cli.issuers import issuers
from evergrant.cli.login import login, logout, whoami
from evergrant.cli.output import DEFAULTS, Options, lease_row, row_of, show_error
from evergrant.cli.people import people
from evergrant.cli.permits import permits
from evergrant.cli.show.examples import add_examples
from evergrant.cli.show.tables import Format, show_one, show_rows
from evergrant.cli.show.waiting import say_while_waiting
from evergrant.cli.start.init import init
from evergrant.cli.start.lines import line_to_copy
from evergrant.cli.transfer import export_file, export_key
from evergrant.cli.webhooks import webhooks
from evergrant.errors import EvergrantError, ReconnectNeeded
from evergrant.grant_files import file_error
from evergrant.lease import Lease
from evergrant.models import ConsentRequired

_AUDIT = ("seq", "shard", "at", "action", "by", "detail")


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point. Always ends in SystemExit."""
    sys.exit(_status(arguments))


def _status(arguments: Sequence[str] | None) -> int:
    say_while_waiting()
    try:
        build_app()(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        print(f"evergrant: usage: {usage_error(error)}", file=sys.stderr)
        return 2
    except EvergrantError as error:
        show_error(error)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader closed the pipe; without this the interpreter fails again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        show_error(file_error(Path(str(error.filename or ".")), error))
        return 1
    return 0


def token(
    integration: str,
    subject: str,
    /,
    *,
    label: str = "default",
    min_ttl: Seconds | None = None,
    scope: Scopes = (),
    exact: bool = False,
    show: bool = False,
    options: Options = DEFAULTS,
) -> None:
    """Print an access token: in full to a pipe or a file, hidden on a terminal.

    Args:
        min_ttl: Seconds the token must still be valid for.
        exact: The token may do no more than the scopes, where the provider issues such tokens.
        show: Print the token to a terminal too.
    """
    ttl = None if min_ttl is None else timedelta(seconds=min_ttl)
    with options.client() as client:
        wanted: LeaseOptions = {"label": label, "min_ttl": ttl, "scopes": scope or None, "exact": exact}
        answer = client.lease(integration, subject, **wanted)
    match answer:
        case ConsentRequired():
            if answer.missing_scopes:
                needed = answer.as_error()
                needed.repair = f"Send the subject to {answer.connect_url}"
                raise needed
            named = () if label == "default" else ("--label", label)
            key = ("--api-key-file", str(options.api_key_file)) if options.api_key_file else ()
            command = line_to_copy(
                "evergrant", "connect", integration, subject, *named, "--open", "--wait", *key
            )
            raise ReconnectNeeded(
                f"{subject} has not consented at {integration}",
                repair=f"Run: {command}; or send the subject to {answer.connect_url}",
                context=answer.as_error().context,
            )
        case Lease():
            visible = show or not sys.stdout.isatty()
            if visible and options.output is Format.TABLE:
                print(answer.access_token)
            else:
                show_one(lease_row(answer, show_token=visible), options.output)


def proof(
    connection_id: str,
    method: str,
    url: str,
    /,
    *,
    nonce: str | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Print a DPoP header for one request with a token that is bound to a key (RFC 9449).

    Args:
        nonce: The value of the API's DPoP-Nonce header.
    """
    with options.client() as client:
        made = client.proof(connection_id, method, url, nonce=nonce)
    if options.output is Format.TABLE:
        print(made.proof)
    else:
        show_one(row_of(made), options.output)


def audit(connection_id: str | None = None, /, *, options: Options = DEFAULTS) -> None:
    """Show the audit records of a connection, or of the whole tenant."""
    with options.client() as client:
        show_rows((row_of(record) for record in client.audit(connection_id)), _AUDIT, options.output)


def build_app() -> App:
    """The whole command with its subcommands."""
    app = App(
        name="evergrant",
        help="Managed OAuth from the shell: connections, tokens, audit.",
        version=version("evergrant"),
    )
    app.command(init)
    app.command(providers)
    app.command(integrations)
    app.command(connections)
    app.command(connect)
    app.command(token, name=("token", "lease"))
    app.command(proof)
    app.command(proxy)
    app.command(mcp)
    app.command(apps)
    app.command(agents)
    app.command(approvals)
    app.command(delegations)
    app.command(clients)
    app.command(issuers)
    app.command(permits)
    app.command(access)
    app.command(access_requests)
    app.command(people)
    app.command(login)
    app.command(logout)
    app.command(whoami)
    app.command(audit)
    app.command(webhooks)
    app.command(import_file, name="import")
    app.command(export_file, name="export")
    app.command(export_key, name="export-key")
    app.command(completion)
    add_examples(app)
    return app


def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print what a shell needs to complete commands and options.

    Args:
        shell: bash, zsh or fish.
    """
    print(build_app().generate_completion(shell=shell))
