"""`evergrant connections`: begin, confirm, look at, refresh and revoke connections, and sign requests."""

import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Annotated

from cyclopts import App, Parameter

from evergrant.api.models import Connection, ProviderSaid
from evergrant.cli.arguments import Generation, Scopes, Seconds
from evergrant.cli.commands.erasures import until_erased
from evergrant.cli.commands.incidents import bulk
from evergrant.cli.consent import announce, connect_here, say_who, saying_why, words_of
from evergrant.cli.options import DEFAULTS, Options, line_to_copy, note_missing_integration
from evergrant.cli.tables import Format, Row, members_of, row_of, show_one, show_rows
from evergrant.errors import EvergrantError, PlatformUnavailable
from evergrant.models import State

_CONNECTIONS = ("id", "integration", "subject", "label", "state", "expires_at", "reason", "repairer")
_ATTENTION = ("repairer", "integration", "state", "code", "connections", "since", "repair")
_WAITING = ("kind", "number", "since")
_ENDS = ("at", "kind", "name", "owner", "connections")
_STANDINGS = ("name", "provider", "state", "active", "failing", "needs_reauth", "pending_consent")
_BELOW = {"subject": ("label",), "state": ("reason", "repairer")}

connections = App(name="connections")
connections.command(bulk)


def overview(*, options: Options = DEFAULTS) -> None:
    """Show what needs somebody and whose turn it is, what ends soon, and how each integration is."""
    with options.client() as client:
        shown = client.overview()
    if options.output is not Format.TABLE:
        show_one(shown, options.output)
        return
    tables = (
        ("needs somebody", shown.attention, _ATTENTION),
        ("waits for an admin", shown.waiting, _WAITING),
        ("ends within 30 days", shown.ends, _ENDS),
        ("integrations", shown.integrations, _STANDINGS),
    )
    for title, rows, columns in tables:
        print(f"{title}: {len(rows) or 'nothing'}")
        if rows:
            show_rows(rows, columns, options.output)


@connections.command(name=("ls", "list"))
def list_connections(
    *,
    integration: str | None = None,
    provider: str | None = None,
    subject: str | None = None,
    state: State | None = None,
    search: str | None = None,
    failing: bool = False,
    urgent: bool = False,
    reference: str | None = None,
    options: Options = DEFAULTS,
) -> None:
    """List the connections this app may see.

    Args:
        search: How the subject, the label or the id begins.
        failing: Only active ones whose refresh fails, or whose account is to be chosen.
        urgent: Those that need somebody first.
        reference: That of a subject's page: the connection whose consent failed there.
    """
    with options.client() as client:
        listed = client.connections(
            integration=integration,
            provider=provider,
            subject=subject,
            state=state,
            search=search,
            failing=failing or None,
            order="urgency" if urgent else None,
            reference=reference,
        )
        rows = [connection_row(connection) for connection in listed]
        if integration and not rows:
            note_missing_integration(client, integration)
        show_rows(rows, _CONNECTIONS, options.output, below=_BELOW, usual={"label": "default"})


@connections.command(name="get")
def get_connection(connection_id: str, /, *, live: bool = False, options: Options = DEFAULTS) -> None:
    """Show one connection.

    Args:
        live: Ask its workflow too, two seconds at most, and show where the store differs.
    """
    with options.client() as client:
        connection = client.connection(connection_id, live=live)
    if not live:
        _show(connection, options)
        return
    show_live(connection, options.output)
    if connection.live is None:
        raise PlatformUnavailable(
            "the workflow did not answer; this is the store's state",
            code="temporal_unavailable",
            repair="On the server: python -m evergrant_server doctor says whether Temporal, a worker and the "
            "workflow are there; reconcile starts a missing one.",
        )


@Parameter(name="*")
@dataclass(frozen=True)
class Consent:
    """The options of `connect`: which grant, and what the command does until the subject has consented."""

    label: str = "default"
    scope: Scopes = ()
    return_to: str | None = None
    "A page of your app, which then confirms the consent, and not this command."
    flow: str | None = None
    "How its tokens are obtained, such as client_credentials; by default as the provider's definition says."
    resource: tuple[str, ...] = ()
    "The resource its tokens are for, an absolute URI (RFC 8707)."
    audience: str | None = None
    "The same, for servers that have a parameter of this name instead."
    choice: str | None = None
    "The account to choose, where the grant reaches several."
    wait: bool = False
    "Print the link on stderr, wait until the subject has finished, and confirm the consent."
    timeout: Seconds = 600
    "Seconds to wait."
    open_browser: Annotated[bool, Parameter(name="--open")] = False
    "Open the link in this machine's browser."
    expect: tuple[str, ...] = ()
    """A claim of the account that is meant, as NAME=VALUE with sub, email, hd or tid; may be repeated. A
    consent with another account is refused."""
    login_hint: str | None = None
    "Helps the provider to choose the account."


@connections.command(name=("connect", "create"))
def connect(
    integration: str, subject: str, /, *, consent: Consent = Consent(), options: Options = DEFAULTS
) -> None:
    """Begin a connection and print the subject's next step, if there is one."""
    explain = partial(_provider_said, options)
    limit, in_browser = timedelta(seconds=consent.timeout), consent.open_browser
    with options.client() as client:
        begin = partial(
            client.connect,
            integration,
            subject,
            label=consent.label,
            scopes=consent.scope or None,
            flow=consent.flow,
            resources=consent.resource,
            audience=consent.audience,
            choice=consent.choice,
            expect=dict(_pairs(consent.expect)),
            login_hint=consent.login_hint,
        )
        if consent.wait and consent.return_to is None:
            connection = connect_here(client, begin, limit, in_browser=in_browser, explain=explain)
        else:
            connection = begin(return_to=consent.return_to)
            if consent.wait or in_browser:
                announce(connection, in_browser=in_browser)
            if consent.wait:
                with saying_why(connection, explain):
                    connection = client.wait_for_consent(connection.id, limit)
        if consent.wait:
            say_who(connection)
        _show(connection, options)


def _provider_said(options: Options, connection_id: str) -> ProviderSaid | None:
    """What the provider said of a connection's failure, where this folder's own credential is an admin's."""
    for asking in dict.fromkeys((options, replace(options, api_key_file=None))):
        with suppress(EvergrantError), asking.client() as client:
            if (refusal := client.connection(connection_id).provider_said) is not None:
                return refusal
    return None


@connections.command
def confirm(connection_id: str, code: str, subject: str, /, *, options: Options = DEFAULTS) -> None:
    """Confirm that the person who finished a consent is the subject.

    Args:
        code: The code that the page at the end shows, where the link has no page to return to.
    """
    with options.client() as client:
        _show(client.confirm(connection_id, code, subject), options)


@connections.command
def refresh(connection_id: str, /, *, refused: Generation | None = None, options: Options = DEFAULTS) -> None:
    """Refresh a connection's grant.

    Args:
        refused: Report that the provider's API answered 401 to the token of a lease of this generation.
            However many callers report it, it is refreshed once; and not at all while another refresh would
            not help.
    """
    with options.client() as client:
        if refused is None:
            _show(client.refresh(connection_id), options)
            return
        connection = client.report_refused(connection_id, refused)
    _show(connection, options)
    if connection.generation == refused:
        reason = "another refresh would not help now"
        print(f"generation {refused} is still the newest: {reason}", file=sys.stderr)


@connections.command
def reauthorize(connection_id: str, /, *, scope: Scopes = (), options: Options = DEFAULTS) -> None:
    """Open a new consent for a connection and print the link for its subject."""
    with options.client() as client:
        _show(client.reauthorize(connection_id, scopes=scope or None), options)


@connections.command
def choose(connection_id: str, choice: str, /, *, options: Options = DEFAULTS) -> None:
    """Choose the account a connection is for, by the id of one of its choices."""
    with options.client() as client:
        _show(client.choose(connection_id, choice), options)


@connections.command
def revoke(connection_id: str, /, *, reason: str, options: Options = DEFAULTS) -> None:
    """Revoke a connection. It can't be undone."""
    with options.client() as client:
        _show(client.revoke(connection_id, reason), options)


@connections.command
def erase(connection_id: str, /, *, reason: str, options: Options = DEFAULTS) -> None:
    """Revoke a connection and erase everything of it. It can't be undone.

    Args:
        reason: For the audit log, which keeps it: name a ticket, and no person.
    """
    with options.client() as client:
        erasure = client.create_erasure(connection_id=connection_id, reason=reason)
        show_one(until_erased(client, erasure), options.output)


@connections.command
def sign(
    connection_id: str, method: str, url: str, /, *, form: tuple[str, ...] = (), options: Options = DEFAULTS
) -> None:
    """Print the headers that sign one request, for connections without a token to lease (OAuth 1.0a).

    Args:
        form: A field of its form body, as NAME=VALUE; may be repeated.
    """
    fields = _pairs(form)
    with options.client() as client:
        signed = client.sign(connection_id, method, url, fields)
    if options.output is Format.TABLE:
        for name, value in signed.headers.items():
            print(f"{name}: {value}")
    else:
        show_one(dict(signed.headers), options.output)


def _pairs(pairs: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(name, value) for name, _, value in (pair.partition("=") for pair in pairs)]


def _show(connection: Connection, options: Options) -> None:
    show_one(connection_row(connection), options.output)


def show_live(connection: Connection, output: Format) -> None:
    """A connection beside its workflow's description; `differs` marks where they disagree."""
    row = connection_row(connection)
    live = None if connection.live is None else row_of(connection.live)
    if output is not Format.TABLE:
        show_one({**row, "live": live, "differs": list(connection.differs or ())}, output)
        return
    show_one(row, output)
    if live is not None:
        print()
        rows = (
            {
                "member": name,
                "store": row.get(name, ""),
                "workflow": value,
                "differs": "differs" if name in (connection.differs or ()) else "",
            }
            for name, value in live.items()
        )
        show_rows(rows, ("member", "store", "workflow", "differs"), output)


def connection_row(connection: Connection) -> Row:
    row = members_of(connection, _CONNECTION)
    if connection.reason == "choice_required":
        row["choices"] = ", ".join(f"{choice.id} ({choice.label})" for choice in connection.choices)
    if connection.device is not None:
        row["user_code"] = connection.device.user_code
        row["verification_uri"] = connection.device.verification_uri
    if connection.provider_said is not None:
        row |= _said_row(connection.provider_said)
        if connection.provider_said.reason == "client_rejected":
            show = line_to_copy("evergrant", "integrations", "get", connection.integration)
            row["repair"] = f"its client id, secret and redirect URI have to be the provider's: {show}"
    if connection.connect_url is not None:
        row |= members_of(connection, ("connect_url", "connect_expires_at"))
    return row


def _said_row(failure: ProviderSaid) -> Row:
    """The provider's words in one line, for an admin."""
    shown = {"provider_said": words_of(failure) or None, "provider_said_at": failure.at.isoformat()}
    return shown if failure.reference is None else {**shown, "reference": failure.reference}


_CONNECTION = (
    *("id", "integration", "provider", "subject", "label", "flow", "state", "generation", "scopes"),
    *("expires_at", "reason", "repairer", "created_at", "changed_at"),
)
