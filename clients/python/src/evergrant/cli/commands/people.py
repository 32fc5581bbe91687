"""`evergrant people`, `login`, `logout` and `whoami`: people who administer, and one's own session.

A login is an authorization code with PKCE and the loopback interface (RFC 8252 section 7.3). There is no
device flow: phishing with it is in daily use.
"""

import hmac
import sys
import webbrowser
from datetime import timedelta
from queue import Empty
from secrets import token_urlsafe
from typing import Annotated
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
from cyclopts import App, Parameter

from evergrant.api.attempts import transport_error
from evergrant.api.call import check_version, object_parser
from evergrant.api.models import CommandSession
from evergrant.cli.arguments import Scopes, argument_error
from evergrant.cli.consent import ReturnListener
from evergrant.cli.options import DEFAULTS, Options
from evergrant.cli.tables import row_of, show_one
from evergrant.cli.verbs import verb
from evergrant.errors import BadRequest, EvergrantError, Unreachable
from evergrant.identity.session_file import keep_token
from evergrant.models import new_verifier

_SESSIONS = ("id", "live", "name", "person", "role", "kind", "created_at", "last_used_at", "expires_at")

people = App(name="people")

verb(people, "show", "admin_login", "Show where people log in, and which groups have which role.")
verb(people, "rm", "delete_admin_login", "Let no people log in. Ends the sessions of all people.")
verb(people, "sessions", "sessions", "List who is logged in; ended sessions for thirty days.", _SESSIONS)
verb(people, "end", "end_session", "End a session. Requests with it are refused at once.")


@people.command
def put(
    integration: str,
    /,
    *,
    admin: tuple[str, ...] = (),
    auditor: tuple[str, ...] = (),
    story_reader: tuple[str, ...] = (),
    claim: str = "groups",
    scope: Scopes = (),
    options: Options = DEFAULTS,
) -> None:
    """Have people log in at the issuer of an integration. A change ends the sessions of all people.

    Args:
        admin: A group of the issuer whose people administer the tenant; exact, and may be repeated.
        auditor: A group whose people read everything and change nothing.
        story_reader: A group whose people read connections and their stories, also in the Temporal UI.
        claim: The claim that has the groups.
        scope: A scope to request beside openid, where the issuer tells the groups for one.
    """
    groups_of = {"tenant_admin": admin, "auditor": auditor, "story_reader": story_reader}
    roles = {role: groups for role, groups in groups_of.items() if groups}
    if not roles:
        raise argument_error("no group has a role: name one with --admin, --auditor or --story-reader")
    with options.client() as client:
        made = client.put_admin_login(integration, roles, groups_claim=claim, scopes=scope)
        show_one(made, options.output)


_EXCHANGE_S = 30.0


def login(
    *,
    again: Annotated[bool, Parameter(negative=())] = False,
    tenant: str | None = None,
    browser: bool = True,
    wait: float = 300.0,
    options: Options = DEFAULTS,
) -> None:
    """Log in as a person, in a browser on this machine. The session is kept in a file of mode 0600.

    Commands use it where no API key is set. It ends after 30 minutes without a command, or after 12 hours.

    Args:
        again: Have the issuer see you anew, for a command that answers step_up_required.
        tenant: Log in to this tenant; by default the server's own.
        browser: Open a browser. Without it, open the address that is printed.
        wait: Seconds to wait for the browser.
    """
    server = options.address()
    state, (verifier, challenge) = token_urlsafe(32), new_verifier()
    with ReturnListener(lambda url: code_with_state(url, state)) as listener:
        port = str(urlsplit(listener.url).port)
        query = {"port": port, "state": state, "challenge": challenge}
        query |= {"step_up": "true"} if again else {}
        query |= {"tenant": tenant} if tenant else {}
        address = f"{server}/login?{urlencode(query)}"
        _require_login(server, address)
        print(f"open {address}", file=sys.stderr, flush=True)
        if browser:
            webbrowser.open(address)
        try:
            code = listener.codes.get(timeout=wait)
        except Empty:
            why = f"no login came back within {timedelta(seconds=wait)}"
            raise BadRequest(why, code="login_timeout", repair="Run evergrant login again.") from None
    made = _exchange(server, code, verifier)
    keep_token(server, made.token)
    shown = row_of(made)
    del shown["token"]
    show_one(shown, options.output)


def logout(*, options: Options = DEFAULTS) -> None:
    """End the session of `evergrant login`, and forget it."""
    server = options.address()
    try:
        with options.client() as client:
            client.end_own_session()
    except EvergrantError as error:
        if error.status not in (401, 404):  # it had ended
            raise
    finally:
        keep_token(server, None)


def whoami(*, options: Options = DEFAULTS) -> None:
    """Show who you are, in which role, and until when."""
    with options.client() as client:
        try:
            session = client.own_session()
        except BadRequest as error:
            if error.status == 404:
                error.repair = "An app's key came: evergrant apps ls. For a person: evergrant login."
            raise
        show_one(session, options.output)


def code_with_state(url: str, state: str) -> str | None:
    """The code of a return that this command began; None for any other request at the listener."""
    query = parse_qs(urlsplit(url).query)
    returned = next(iter(query.get("state", ())), "")
    if not hmac.compare_digest(returned.encode(), state.encode()):
        return None
    return next(iter(query.get("code", ())), None)


def _require_login(server: str, address: str) -> None:
    """Raise EvergrantError where no browser could come back. To get the page changes nothing."""
    try:
        status = httpx2.get(address, trust_env=False, timeout=_EXCHANGE_S).status_code
    except httpx2.RequestError as error:
        raise transport_error(error, server) from None
    if status == 404:
        repair = "An admin names their issuer: evergrant people put --help. Until then use an API key."
        raise BadRequest(f"people can't log in at {server} yet", code="login_not_set_up", repair=repair)


def _exchange(url: str, code: str, verifier: str) -> CommandSession:
    body = {"code": code, "verifier": verifier}
    try:
        with httpx2.Client(trust_env=False, timeout=_EXCHANGE_S) as http:
            response = http.post(f"{url}/login/command", json=body)
    except httpx2.RequestError as error:
        raise Unreachable(f"{url} can't be reached ({type(error).__name__})") from None
    check_version(response)
    return object_parser(CommandSession)(response)
