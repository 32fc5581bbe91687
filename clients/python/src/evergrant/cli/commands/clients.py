"""`evergrant clients`: OAuth clients of the gateway, as which app they act, and what people agreed to."""

import json
from pathlib import Path

from cyclopts import App

from evergrant.cli.arguments import argument_error
from evergrant.cli.options import DEFAULTS, Options
from evergrant.cli.tables import show_one, show_rows
from evergrant.cli.verbs import verb

_CLIENTS = ("id", "name", "kind", "disabled", "redirect_uris", "used_at", "client_id")

clients = App(name="clients")

verb(
    clients, "show", "client_login", "Show as which app OAuth clients act, and the URL to give an MCP client."
)
verb(clients, "off", "delete_client_login", "Let no OAuth clients act. Ends what was authorized before.")
verb(
    clients,
    "ls",
    "oauth_clients",
    "List OAuth clients: those of admins, and those that registered themselves.",
    _CLIENTS,
)
verb(clients, "rm", "delete_oauth_client", "Delete a client. Its tokens count no more.")


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
    device: bool = False,
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
        device: Whether a program on a machine without a browser may show a code (RFC 8628), with which its
            person decides elsewhere. Off by default: a code is easily sent to somebody else.
    """
    with options.client() as client:
        made = client.put_client_login(
            integration,
            app,
            claim=claim,
            domains=domain,
            registration=registration,
            documents=documents,
            device=device,
        )
        show_one(made, options.output)


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
        show_one(client.create_oauth_client(name, redirect_uri, jwks=keys), options.output)


@clients.command
def disable(client_id: str, /, *, options: Options = DEFAULTS) -> None:
    """Turn a client off. Its tokens count no more while it is off."""
    with options.client() as client:
        show_one(client.switch_oauth_client(client_id, disabled=True), options.output)


@clients.command
def enable(client_id: str, /, *, options: Options = DEFAULTS) -> None:
    """Turn a client on again."""
    with options.client() as client:
        show_one(client.switch_oauth_client(client_id, disabled=False), options.output)


_FAMILIES = (
    *("id", "live", "subject", "app", "client_id", "resource"),
    *("used_at", "called_at", "end", "replays"),
)


@clients.command(name="families")
def list_families(
    *,
    app: str | None = None,
    client: str | None = None,
    subject: str | None = None,
    options: Options = DEFAULTS,
) -> None:
    """List what subjects have authorized clients for: a family of tokens for each authorization.

    Args:
        app: Those of this app alone.
        client: Those of the client with this client id alone.
        subject: Those of this subject alone.
    """
    with options.client() as api:
        families = api.token_families(app=app, client_id=client, subject=subject)
        show_rows(families, _FAMILIES, options.output)


@clients.command(name="end")
def end_families(
    family: str | None = None,
    /,
    *,
    app: str | None = None,
    client: str | None = None,
    subject: str | None = None,
    options: Options = DEFAULTS,
) -> None:
    """End one family of tokens by its id, or all of an app, a client or a subject, and print the counts.

    Args:
        family: The id of a family, fam_….
        app: All of this app.
        client: All of the client with this client id.
        subject: All of this subject.
    """
    filtered = (app, client, subject) != (None, None, None)
    if (family is None) != filtered:
        raise argument_error("name one family by its id, or say --app, --client or --subject")
    with options.client() as api:
        if family is not None:
            ended = api.end_token_family(family)
        else:
            ended = api.end_token_families(app=app, client_id=client, subject=subject)
        show_one(ended, options.output)
