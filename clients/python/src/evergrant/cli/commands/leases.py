"""`evergrant token`, `proof`, `proxy` and `mcp`: what an app gets, and the gateway."""

import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from evergrant.api.leases import LeaseOptions
from evergrant.cli.arguments import Scopes, Seconds, argument_error, header_of
from evergrant.cli.main import build_app
from evergrant.cli.options import DEFAULTS, Options, environment, line_to_copy
from evergrant.cli.tables import Format, Row, members_of, show_one
from evergrant.errors import BadRequest, EvergrantError, ReconnectNeeded
from evergrant.gateway.clients import gateway_address
from evergrant.lease import Lease
from evergrant.models import ConsentRequired, State

_BEGUN_ANEW = ("connection_revoked", "consent_expired", "consent_denied")


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
        try:
            answer = client.lease(integration, subject, **wanted)
        except ReconnectNeeded as ended:
            if ended.code in _BEGUN_ANEW:
                ended.repair = f"Begin anew: {_connect_line(integration, subject, label, options)}"
            raise
    match answer:
        case ConsentRequired():
            raise _consent_needed(answer, integration, subject, label, options)
        case Lease():
            visible = show or not sys.stdout.isatty()
            if visible and options.output is Format.TABLE:
                print(answer.access_token)
            else:
                show_one(lease_row(answer, show_token=visible), options.output)


def _consent_needed(
    answer: ConsentRequired, integration: str, subject: str, label: str, options: Options
) -> ReconnectNeeded:
    needed = answer.as_error()
    if answer.missing_scopes:
        needed.repair = f"Send the subject to {answer.connect_url}"
        return needed
    needed.detail = f"{subject} has not consented at {integration}"
    command = _connect_line(integration, subject, label, options)
    needed.repair = f"Run: {command}; or send the subject to {answer.connect_url}"
    return needed


def _connect_line(integration: str, subject: str, label: str, options: Options) -> str:
    flags = () if label == "default" else ("--label", label)
    key = ("--api-key-file", str(options.api_key_file)) if options.api_key_file else ()
    return line_to_copy("evergrant", "connect", integration, subject, *flags, "--open", "--wait", *key)


def proof(
    connection_id: str, method: str, url: str, /, *, nonce: str | None = None, options: Options = DEFAULTS
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
        show_one(made, options.output)


class ApiRefused(EvergrantError):
    """The provider's API answered with a status of failure."""

    default_code = "api_refused"
    default_repair = "The answer above is the provider's."


def proxy(
    connection_id: str,
    method: str,
    path: str,
    /,
    *,
    header: Annotated[tuple[str, ...], Parameter(name=["--header", "-H"])] = (),
    data: Annotated[str | None, Parameter(name=["--data", "-d"])] = None,
    include: Annotated[bool, Parameter(name=["--include", "-i"], negative=())] = False,
    gateway_url: str | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Send a request to a connection's API with its credential, which stays in the gateway.

    Args:
        path: Behind the API's base URL, with the query: /user/repos?per_page=5
        header: NAME: VALUE, once for each.
        data: The body; @FILE reads a file, @- the standard input.
        include: Print status and headers too.
        gateway_url: The gateway's URL; by default EVERGRANT_GATEWAY_URL, or that of evergrant.env.
    """
    headers = [header_of(line) for line in header]
    body = _body(data)
    gateway = gateway_address(gateway_url, allow_plain_http=True, environ=environment(options.url))
    where = f"/{path.removeprefix('/')}"
    with (
        options.client() as client,
        client.proxy(connection_id, gateway_url=gateway) as api,
        api.stream(method, where, headers=headers, content=body) as response,
    ):
        if include:
            print(f"HTTP {response.status_code}")
            for name, value in response.headers.items():
                print(f"{name}: {value}")
            print(flush=True)
        for chunk in response.iter_raw():
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
    if response.status_code >= 400:
        raise ApiRefused(f"the provider's API answered with {response.status_code}")


def _body(data: str | None) -> bytes | None:
    if data is None or not data.startswith("@"):
        return None if data is None else data.encode()
    if data == "@-":
        return sys.stdin.buffer.read()
    try:
        return Path(data[1:]).read_bytes()
    except OSError as error:
        raise argument_error(f"{data[1:]}: {error.strerror}") from None


_OVER = (State.REVOKING, State.REVOKED, State.DENIED)

mcp = App(name="mcp")


@mcp.command
def url(
    integration: str | None = None,
    subject: str | None = None,
    /,
    *,
    label: str = "default",
    gateway_url: str | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Print the URL of a subject's MCP server at the gateway, for an MCP client's configuration; without
    names that of Evergrant's own MCP server.

    The client sends `Authorization: Bearer` with the app's API key there.

    Args:
        gateway_url: The gateway's URL; by default EVERGRANT_GATEWAY_URL, or that of evergrant.env.
    """
    gateway = gateway_address(gateway_url, allow_plain_http=True, environ=environment(options.url))
    if integration is None:
        print(f"{gateway}/mcp")
        return
    if subject is None:
        repair = f"Run: evergrant mcp url {integration} SUBJECT"
        raise BadRequest("the subject is missing", code="invalid_request", repair=repair)
    with options.client() as client:
        connections = client.connections(integration=integration, subject=subject)
        ids = [
            connection.id
            for connection in connections
            if connection.label == label and connection.state not in _OVER
        ]
    if not ids:
        why = f"{subject} has no connection of {integration} that this app may see"
        repair = f"Run: {_connect_line(integration, subject, label, options)}"
        raise BadRequest(why, code="not_found", repair=repair)
    print(f"{gateway}/mcp/{ids[0]}")


def lease_row(lease: Lease, *, show_token: bool) -> Row:
    token = lease.access_token if show_token else "(hidden: --show prints it)"
    return {"access_token": token, **members_of(lease, _LEASE)}


_LEASE = ("token_type", "expires_at", "scopes", "generation", "connection_id", "grant_over", "audit")


def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print what a shell needs to complete commands and options.

    Args:
        shell: bash, zsh or fish.
    """
    print(build_app().generate_completion(shell=shell))
