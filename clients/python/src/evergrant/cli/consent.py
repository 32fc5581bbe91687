"""`evergrant connect`: a consent that is bound to the terminal that began it (RFC 8252 section 7.3).

The browser comes back to a listener on this machine, with the code to confirm. Where it can't, because the
app doesn't list `http://127.0.0.1/` or the browser is on another machine, the code is typed in.
"""

import os
import re
import sys
import webbrowser
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Self
from urllib.parse import parse_qs, urlsplit

from evergrant.api.commands import ApiMethods
from evergrant.api.models import Connection, ProviderSaid
from evergrant.cli.options import line_to_copy
from evergrant.cli.tables import printable
from evergrant.errors import (
    BadRequest,
    ClientMisconfigured,
    EvergrantError,
    PlatformUnavailable,
    ProviderUnavailable,
    ReconnectNeeded,
)
from evergrant.models import new_verifier
from evergrant.retries import Deadline, is_consent_complete, telling_whose_turn
from evergrant.sync_client import Evergrant

_POLL = timedelta(seconds=2)
_ERROR_CODE = re.compile("[a-z]{1,20}(_[a-z]{1,20}){0,4}")
_TRY_AGAIN = frozenset({"not_found", "confirm_expired"})  # this code doesn't count; another one may
_NEW_LINK = "Run the command again: it makes a new link."
_PAGE = b"<!doctype html><title>Evergrant</title><p>Back to the terminal: it says how this ended."


def connect_here(
    client: Evergrant,
    begin: Callable[..., Connection],
    timeout: timedelta,
    *,
    in_browser: bool,
    explain: Callable[[str], ProviderSaid | None],
) -> Connection:
    """Begin a consent, wait for its subject, and confirm it. `begin` takes `return_to` and `challenge`,
    `explain` a connection's id.

    Raises ConsentTimeout after `timeout`, and as `is_consent_complete` when the consent ended otherwise.
    """
    verifier, challenge = new_verifier()
    with ReturnListener() as listener:
        opened = _begin(partial(begin, challenge=challenge), listener, in_browser)
        with saying_why(opened, explain):
            return _finish(client, opened, listener, verifier, Deadline(timeout), in_browser)


@contextmanager
def saying_why(opened: Connection, explain: Callable[[str], ProviderSaid | None]) -> Generator[None]:
    """Show what the provider said of a consent that has failed, or where to look: the terminal doesn't see
    the provider's page, where a consent ends that the provider refuses."""
    try:
        yield
    except (ClientMisconfigured, PlatformUnavailable, ProviderUnavailable, ReconnectNeeded) as error:
        refusal = explain(opened.id)
        if error.context.get("consent") == "failed":
            later = isinstance(error, ProviderUnavailable)
            error.repair = _NEW_LINK if later else f"{error.repair} {_NEW_LINK}"
        _say_where_to_look(opened, refusal)
        raise
    except KeyboardInterrupt:
        _say_where_to_look(opened, None)
        raise


def _say_where_to_look(opened: Connection, refusal: ProviderSaid | None) -> None:
    show = line_to_copy("evergrant", "integrations", "get", opened.integration)
    if refusal is not None and (words := words_of(refusal)):
        _say(printable(f"the provider said: {words}"))
        _say(f"the OAuth client that it was asked by: {show}")
        return
    look = line_to_copy("evergrant", "connections", "get", opened.id)
    uri = line_to_copy("evergrant", "integrations", "redirect-uri", opened.integration)
    _say(f"what the provider said, for an admin: {look}")
    _say(f"the redirect URI, if its page finds it wrong: {uri}")
    _say(f"the client id, if its page doesn't know it (404 at GitHub; is it the secret?): {show}")


def words_of(refusal: ProviderSaid) -> str:
    """What a provider said of a refusal, in one line; empty where it said nothing."""
    by = "unauthenticated" if refusal.unauthenticated else None
    words = ": ".join(filter(None, (refusal.error, refusal.description)))
    parts = (by, None if refusal.status is None else f"status {refusal.status}", words)
    return ", ".join(filter(None, parts)) if words or refusal.status is not None else ""


def _finish(
    client: Evergrant,
    opened: Connection,
    listener: "ReturnListener",
    verifier: str,
    deadline: Deadline,
    in_browser: bool,
) -> Connection:
    while True:
        connection = client.send(ApiMethods.connection.call(opened.id), deadline.poll_timeout_s())
        if is_consent_complete(connection, newer_than=0):
            return connection
        _require_not_failed(listener, opened.id)
        with suppress(Empty), telling_whose_turn(connection):
            code = listener.codes.get(timeout=deadline.poll_pause_s(_POLL))
            if not code:  # the browser has brought a failure, which the connection tells in full
                continue
            confirm = partial(client.confirm, opened.id, code, opened.subject, verifier)
            _confirm(confirm, opened.connect_url, in_browser)


def _require_not_failed(listener: "ReturnListener", connection_id: str) -> None:
    """Raise ReconnectNeeded if the browser has brought the code of this consent's failure."""
    if (code := listener.failures.get(connection_id)) is not None:
        raise ReconnectNeeded(
            "the consent has failed", code=code, repair=_NEW_LINK, context={"connection_id": connection_id}
        )


def _begin(begin: Callable[..., Connection], listener: "ReturnListener", in_browser: bool) -> Connection:
    """Begin a consent whose browser comes back to `listener`, or whose code is typed in if it may not."""
    try:
        opened, typed = begin(return_to=listener.url), sys.stdin.isatty()  # for a browser elsewhere
    except BadRequest as refused:
        if refused.context.get("field") != "return_to":
            raise
        opened, typed = begin(), True
    announce(opened, in_browser=in_browser)
    if typed and opened.connect_url is not None:
        listener.read_typed()
        _say("if the page at the end shows a code, enter it here")
    return opened


def _confirm(confirm: Callable[[], Connection], link: str | None, in_browser: bool) -> None:
    """A code that doesn't count is no end: another one may come. `app_first` is answered with a link."""
    try:
        announce(confirm(), in_browser=in_browser)
    except EvergrantError as error:
        if error.context.get("consent") == "failed":
            error.retry_after = None
        if error.code not in _TRY_AGAIN:
            raise
        _say(f"{error.code}: {printable(error.repair)} The link: {link}")


def announce(connection: Connection, *, in_browser: bool) -> None:
    """The subject's next step, on stderr: the output is the connection's."""
    if connection.device is not None:
        _say(f"open {connection.device.verification_uri} and enter {connection.device.user_code}")
    elif connection.connect_url is not None:
        _say(f"open {connection.connect_url}")
        if in_browser:
            webbrowser.open(connection.connect_url)


def say_who(connection: Connection) -> None:
    """Who is connected, where, and with what, on stderr."""
    texts = [f"{name} {value}" for name, value in connection.metadata.items() if isinstance(value, str)]
    scopes = f" with {' '.join(connection.scopes)}" if connection.scopes else ""
    facts = f" ({', '.join(texts)})" if texts else ""
    _say(printable(f"{connection.subject} is connected at {connection.integration}{scopes}{facts}"))
    if missing := connection.missing_scopes:
        again = (part for scope in missing for part in ("--scope", scope))
        line = line_to_copy("evergrant", "connections", "reauthorize", connection.id, *again)
        _say(printable(f"requested and not granted: {' '.join(missing)}"))
        _say("  the person left it out, or the OAuth client may not have it at the provider")
        _say(printable(f"  to ask again: {line}"))


class ReturnListener:
    """Takes the codes that `read` finds: from browsers that come back to `url`, and typed ones.

    `failures` are the error codes that browsers bring, by connection; an empty code says that one has come.
    """

    def __init__(self, read: Callable[[str], str | None] | None = None) -> None:
        self.codes: SimpleQueue[str] = SimpleQueue()
        self.failures: dict[str, str] = {}
        codes, failures, code_of = self.codes, self.failures, read or code_in

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                """Logs nothing: the path holds a code."""

            def do_GET(self) -> None:
                if code := code_of(self.path):
                    codes.put(code)
                elif failed := failure_in(self.path):
                    failures.update([failed])
                    codes.put("")
                self.send_response(200)
                self.send_header("content-type", "text/html")
                self.send_header("referrer-policy", "no-referrer")
                self.end_headers()
                self.wfile.write(_PAGE)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/"
        self._thread = Thread(target=self._http.serve_forever, args=(0.1,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def read_typed(self) -> None:
        """Take the words of the standard input too, in the background: codes, or URLs with one."""

        def read() -> None:
            # not sys.stdin: a thread that waits there keeps its lock, and the interpreter's exit needs it
            while typed := os.read(sys.stdin.fileno(), 4096):
                for word in typed.decode("utf-8", "replace").split():
                    self.codes.put(code_in(word) or word)

        Thread(target=read, daemon=True).start()


def code_in(url: str) -> str | None:
    return next(iter(parse_qs(urlsplit(url).query).get("evergrant_code", ())), None)


def failure_in(url: str) -> tuple[str, str] | None:
    """The connection whose consent has failed, and the code of its failure."""
    query = parse_qs(urlsplit(url).query)
    connection, code = query.get("connection_id", [""])[0], query.get("error", [""])[0]
    return (connection, code) if connection and _ERROR_CODE.fullmatch(code) else None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
