"""The commands. Each makes one call and shows what came back."""

import sys
from datetime import timedelta
from importlib.metadata import version

from cyclopts import App

from evergrant.cli.administration import integrations_app, providers_app
from evergrant.cli.options import DEFAULT_OPTIONS, Generation, Options
from evergrant.cli.output import (
    Format,
    app_row,
    audit_row,
    connection_row,
    lease_row,
    proof_row,
    show_live,
    show_one,
    show_rows,
)
from evergrant.cli.transfer import export_file, export_key, import_file
from evergrant.cli.webhooks import webhooks_app
from evergrant.errors import PlatformUnavailable, ReconnectNeeded
from evergrant.models import Connection, ConsentRequired, Lease, State

_CONNECTIONS = ("id", "integration", "subject", "label", "state", "generation", "expires_at", "reason")
_AUDIT = ("seq", "lane", "at", "action", "by", "detail")


def list_connections(
    *,
    integration: str | None = None,
    provider: str | None = None,
    subject: str | None = None,
    state: State | None = None,
    options: Options = DEFAULT_OPTIONS,
) -> None:
    """List the connections this app may see."""
    with options.client() as client:
        found = client.connections(integration=integration, provider=provider, subject=subject, state=state)
        show_rows((connection_row(it) for it in found), _CONNECTIONS, options.output)


def get_connection(connection_id: str, /, *, live: bool = False, options: Options = DEFAULT_OPTIONS) -> None:
    """Show one connection.

    Parameters
    ----------
    live
        Ask its workflow too, two seconds at most, and show where the store says otherwise.
    """
    with options.client() as client:
        found = client.connection(connection_id, live=live)
    if not live:
        _show(found, options)
        return
    show_live(found, options.output)
    if found.live is None:
        raise PlatformUnavailable(
            "the workflow could not be asked; this is what the store says",
            code="temporal_unavailable",
            repair="Check that Temporal and the workers run.",
        )


def connect(
    integration: str,
    subject: str,
    /,
    *,
    label: str = "default",
    scope: tuple[str, ...] = (),
    return_to: str | None = None,
    flow: str | None = None,
    resource: tuple[str, ...] = (),
    audience: str | None = None,
    choice: str | None = None,
    wait: float | None = None,
    options: Options = DEFAULT_OPTIONS,
) -> None:
    """Begin a connection and print what its subject has to do, if anything.

    Parameters
    ----------
    flow
        How it comes by its tokens, such as client_credentials; by default as the provider's definition says.
    resource
        What its tokens are for, an absolute URI (RFC 8707).
    audience
        The same, for servers that have a parameter of this name instead.
    choice
        The account to take, where the grant reaches several.
    wait
        Seconds to wait for the subject to finish; the link is printed first, on stderr.
    """
    with options.client() as client:
        opened = client.connect(
            integration,
            subject,
            label=label,
            scopes=scope or None,
            return_to=return_to,
            flow=flow,
            resources=resource,
            audience=audience,
            choice=choice,
        )
        if wait is not None:
            if opened.device is not None:
                where = f"open {opened.device.verification_uri} and enter {opened.device.user_code}"
                print(where, file=sys.stderr, flush=True)
            elif opened.connect_url is not None:
                print(f"open {opened.connect_url}", file=sys.stderr, flush=True)
            opened = client.wait_for_consent(opened.id, timedelta(seconds=wait))
        _show(opened, options)


def refresh(
    connection_id: str, /, *, refused: Generation | None = None, options: Options = DEFAULT_OPTIONS
) -> None:
    """Make a connection's grant newer.

    Parameters
    ----------
    refused
        Report that the provider's API answered 401 to the token of a lease of this generation. However many
        report it, it is refreshed once; and not at all while another refresh would not help.
    """
    with options.client() as client:
        if refused is None:
            _show(client.refresh(connection_id), options)
            return
        found = client.report_refused(connection_id, refused)
    _show(found, options)
    if found.generation == refused:
        why = "another refresh would not help now"
        print(f"generation {refused} is still the newest: {why}", file=sys.stderr)


def reauthorize(
    connection_id: str, /, *, scope: tuple[str, ...] = (), options: Options = DEFAULT_OPTIONS
) -> None:
    """Open a new consent for a connection and print the link for its subject."""
    with options.client() as client:
        _show(client.reauthorize(connection_id, scopes=scope or None), options)


def choose(connection_id: str, choice: str, /, *, options: Options = DEFAULT_OPTIONS) -> None:
    """Say which of its choices a connection is for."""
    with options.client() as client:
        _show(client.choose(connection_id, choice), options)


def revoke(connection_id: str, /, *, reason: str, options: Options = DEFAULT_OPTIONS) -> None:
    """Revoke a connection, for good."""
    with options.client() as client:
        _show(client.revoke(connection_id, reason), options)


def sign(
    connection_id: str,
    method: str,
    url: str,
    /,
    *,
    form: tuple[str, ...] = (),
    options: Options = DEFAULT_OPTIONS,
) -> None:
    """Print the headers that sign one request, for connections that have no token to lease (OAuth 1.0a).

    Parameters
    ----------
    form
        A field of its body, where that is a form: NAME=VALUE, once for each.
    """
    fields = [(name, value) for name, _, value in (it.partition("=") for it in form)]
    with options.client() as client:
        signed = client.sign(connection_id, method, url, fields)
    if options.output is Format.TABLE:
        for name, value in signed.headers.items():
            print(f"{name}: {value}")
    else:
        show_one(dict(signed.headers), options.output)


def token(
    integration: str,
    subject: str,
    /,
    *,
    label: str = "default",
    min_ttl: float | None = None,
    scope: tuple[str, ...] = (),
    show: bool = False,
    options: Options = DEFAULT_OPTIONS,
) -> None:
    """Print an access token: bare into a pipe or a file, hidden on a terminal.

    Parameters
    ----------
    min_ttl
        Seconds the token must still be valid for.
    show
        Print the token to a terminal too.
    """
    least = None if min_ttl is None else timedelta(seconds=min_ttl)
    with options.client() as client:
        answer = client.lease(integration, subject, label=label, min_ttl=least, scopes=scope or None)
    match answer:
        case ConsentRequired():
            raise ReconnectNeeded(
                f"{subject} has not consented at {integration}",
                repair=f"Send the subject to {answer.connect_url}",
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
    options: Options = DEFAULT_OPTIONS,
) -> None:
    """Print a DPoP header for one request with a token that is bound to a key (RFC 9449).

    Parameters
    ----------
    nonce
        What the API asked for in its DPoP-Nonce header.
    """
    with options.client() as client:
        made = client.proof(connection_id, method, url, nonce=nonce)
    if options.output is Format.TABLE:
        print(made.proof)
    else:
        show_one(proof_row(made), options.output)


def list_apps(*, options: Options = DEFAULT_OPTIONS) -> None:
    """List the apps of the tenant."""
    with options.client() as client:
        show_rows((app_row(it) for it in client.apps()), ("id", "name", "disabled"), options.output)


def audit(connection_id: str | None = None, /, *, options: Options = DEFAULT_OPTIONS) -> None:
    """Show a connection's audit records, or without one the whole tenant's."""
    with options.client() as client:
        show_rows((audit_row(it) for it in client.audit(connection_id)), _AUDIT, options.output)


def _show(connection: Connection, options: Options) -> None:
    show_one(connection_row(connection), options.output)


def build_app() -> App:
    """The whole command, every subcommand in plain sight."""
    app = App(
        name="evergrant",
        help="Managed OAuth from the shell: connections, tokens, audit.",
        version=version("evergrant"),
    )
    app.command(providers_app())
    app.command(integrations_app())
    connections = App(name="connections", help="Subjects' grants.")
    connections.command(list_connections, name="ls")
    connections.command(get_connection, name="get")
    connections.command(connect, name=("connect", "create"))
    connections.command(refresh)
    connections.command(reauthorize)
    connections.command(choose)
    connections.command(revoke)
    connections.command(sign)
    app.command(connections)
    app.command(token)
    app.command(proof)
    apps = App(name="apps", help="Consumers of Evergrant.")
    apps.command(list_apps, name="ls")
    app.command(apps)
    app.command(audit)
    app.command(webhooks_app())
    app.command(import_file, name="import")
    app.command(export_file, name="export")
    app.command(export_key, name="export-key")
    return app
