"""`evergrant clients`: OAuth clients of the gateway, such as coding agents, and as which app they act."""

import json
from pathlib import Path

from cyclopts import App

from evergrant.cli.output import DEFAULTS, Options, argument_error, row_of
from evergrant.cli.show.tables import show_one, show_rows

_CLIENTS = ("id", "name", "kind", "disabled", "redirect_uris", "used_at", "client_id")

clients = App(name="clients", help="OAuth clients of the gateway, such as coding agents.")


@clients.command
def login(
    integration: str,
    /,
    *,
    app: str,
    claim: str = "sub",
    domain: tuple[str, ...] = (),
    registration: bool = True,
    documents: bool = True,
    options: Options = DEFAULTS,
) -> None:
    """Let OAuth clients act as an app, for persons who log in at the issuer of an integration.

    The app's permits (with the action proxy) say what they reach. A change ends what was authorized before.

    Args:
        app: The app as which clients act.
        claim: The claim that is a person's subject: sub, or email.
        domain: A domain of email addresses; may be repeated. Needed for the claim email.
        registration: Whether clients may register themselves (RFC 7591).
        documents: Whether a client's id may be the URL of its metadata document.
    """
    with options.client() as client:
        made = client.put_client_login(
            integration, app, claim=claim, domains=domain, registration=registration, documents=documents
        )
        show_one(row_of(made), options.output)


@clients.command
def show(*, options: Options = DEFAULTS) -> None:
    """Show as which app OAuth clients act, and the URL to give an MCP client."""
    with options.client() as client:
        show_one(row_of(client.client_login()), options.output)


@clients.command
def off(*, options: Options = DEFAULTS) -> None:
    """Let no OAuth clients act. Ends what was authorized before."""
    with options.client() as client:
        client.delete_client_login()


@clients.command
def put(
    name: str, /, *, redirect_uri: tuple[str, ...] = (), jwks: Path | None = None, options: Options = DEFAULTS
) -> None:
    """Register a client that doesn't register itself. It prints the client id to give to the client.

    Args:
        redirect_uri: Where browsers return to the client; exact, and may be repeated.
        jwks: A file with the client's public keys (a JWK set), with which it then has to prove itself.
    """
    if not redirect_uri:
        raise argument_error("name the client's redirect URI with --redirect-uri")
    try:
        keys = None if jwks is None else json.loads(jwks.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise argument_error(f"{jwks} can't be read as JSON: {error}") from None
    with options.client() as client:
        show_one(row_of(client.create_oauth_client(name, redirect_uri, jwks=keys)), options.output)


@clients.command(name="ls")
def list_clients(*, options: Options = DEFAULTS) -> None:
    """List OAuth clients: those of admins, and those that registered themselves."""
    with options.client() as client:
        show_rows((row_of(it) for it in client.oauth_clients()), _CLIENTS, options.output)


@clients.command
def disable(client_id: str, /, *, options: Options = DEFAULTS) -> None:
    """Turn a client off. Its tokens count no more while it is off."""
    with options.client() as client:
        show_one(row_of(client.switch_oauth_client(client_id, disabled=True)), options.output)


@clients.command
def enable(client_id: str, /, *, options: Options = DEFAULTS) -> None:
    """Turn a client on again."""
    with options.client() as client:
        show_one(row_of(client.switch_oauth_client(client_id, disabled=False)), options.output)


@clients.command(name="rm")
def remove(client_id: str, /, *, options: Options = DEFAULTS) -> None:
    """Delete a client. Its tokens count no more."""
    with options.client() as client:
        client.delete_oauth_client(client_id)
