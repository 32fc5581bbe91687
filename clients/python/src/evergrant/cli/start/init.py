"""`evergrant init`: from at most four questions to a program that leases a token."""

import os
import re
import sys
from getpass import getpass, getuser
from pathlib import Path

from evergrant.calls.integrations import Integration
from evergrant.cli.given.secrets import read_secret
from evergrant.cli.given.values import Scopes
from evergrant.cli.integrations import reserve
from evergrant.cli.output import DEFAULTS, InputFile, Options, argument_error
from evergrant.cli.show.tables import Format, printable, show_one
from evergrant.cli.start.lines import line_to_copy
from evergrant.cli.start.making import have_app, have_client, have_key, have_permit, require_same_server
from evergrant.cli.start.program import require_replaceable, written_program

_NAME = re.compile(r"[a-z0-9-]+", re.IGNORECASE)
_HERE = "http://127.0.0.1/"  # evergrant connect listens on this machine, at any port


def init(
    *,
    provider: str | None = None,
    client_id: str | None = None,
    client_secret_file: InputFile | None = None,
    subject: str | None = None,
    scope: Scopes = (),
    name: str | None = None,
    app: str = "first-app",
    out: Path = Path("lease.py"),
    options: Options = DEFAULTS,
) -> None:
    """Make an integration, an app, its permit and key, and a program that leases a token.

    Asks for the first four options where they are missing. After a mistake, run it again: what works is kept.

    Args:
        provider: A provider of the catalogue, or the URL of any server that publishes its metadata.
        client_id: Your OAuth client's id. It is asked for after the redirect URI is shown. Left empty, a
            server that is given by its URL is asked to register a client (RFC 7591).
        client_secret_file: A file with the client secret; - reads it from the standard input.
        subject: Your name for the person who will consent.
        scope: A scope to request; may be repeated. By default the provider's own.
        name: The integration's name; by default the provider's, and server for a URL.
        app: The app's name.
        out: The program to write.
    """
    url, key = options.address(), Path(f"{app}.key")
    provider = provider or _ask("Provider, or your server's URL", "--provider")
    where = {"provider": "generic", "issuer": provider} if "://" in provider else {"provider": provider}
    if "issuer" not in where and not _NAME.fullmatch(provider):
        raise argument_error(f"{provider!r} is neither a provider's name nor a URL with https:// or http://")
    name = name or ("server" if "issuer" in where else provider)
    require_replaceable(out)
    with options.client() as client:
        found = reserve(client, name, where["provider"], where.get("issuer"))
        require_same_server(found, where)
        _say(f"Register an OAuth client there with exactly this redirect URI:\n\n  {found.redirect_uri}\n")
        members = _client(found, "issuer" in where, client_id, client_secret_file)
        subject = subject or _ask("Your name for the person who will consent", "--subject", getuser())
        if scope:
            members["default_scopes"] = list(scope)
        have_client(client, found, where, members)
        have_app(client, app, _HERE)
        have_permit(client, app, name, subject)
        have_key(client, url, app, key)
    elsewhere = ("--url", options.url) if options.url else ()
    flags = ("--open", "--wait", "--api-key-file", str(key), *elsewhere)
    connect = line_to_copy("evergrant", "connect", name, subject, *flags)
    text = written_program(url, os.path.relpath(key, out.parent), name, subject, connect)
    out.write_text(text, encoding="utf-8")
    if options.output is not Format.TABLE:
        made = {"integration": name, "redirect_uri": found.redirect_uri, "app": app, "subject": subject}
        show_one({**made, "key_file": str(key), "program": str(out)}, options.output)
    _say(f"Made the integration {name}, the app {app} with a permit for {subject}, {key} and {out}.")
    _say(f"Next:\n\n  {connect}\n  {line_to_copy('python', str(out))}")
    _say("\nWith a URL of the provider's API behind it, the second gets that with the token.")


def _client(
    found: Integration, by_url: bool, client_id: str | None, secret_file: Path | None
) -> dict[str, object]:
    """The members that say which OAuth client it is; asked for where they are missing."""
    registered = found.state == "ready"
    if client_id is None and registered and found.members.get("registration"):
        return {}
    if client_id is None and by_url and not registered:
        client_id = _ask("Client id (empty: have the server register one)", "--client-id", "")
    elif client_id is None:
        client_id = _ask("Client id", "--client-id", found.client_id or None)
    if not client_id:
        return {"registration": "dynamic"}
    kept = registered and bool(found.members.get("has_client_secret"))
    if secret_file is not None:
        secret = read_secret(secret_file)
    elif sys.stdin.isatty():
        empty = "empty: the stored one" if kept else "empty: a public client"
        secret = getpass(f"Client secret (hidden; {empty}): ", sys.stderr).strip()
    elif kept:
        secret = ""
    else:
        raise argument_error("--client-secret-file is missing, and there is no terminal to ask at")
    if not secret:
        return {"client_id": client_id} if kept else {"client_id": client_id, "client_auth": "none"}
    return {"client_id": client_id, "client_secret": secret}


def _ask(question: str, flag: str, default: str | None = None) -> str:
    if not sys.stdin.isatty():
        raise argument_error(f"{flag} is missing, and there is no terminal to ask at")
    _say(f"{question}{f' [{default}]' if default else ''}: ", end="")
    answer = sys.stdin.readline().strip() or default
    if answer is None:
        raise argument_error(f"{flag} is missing")
    return answer


def _say(text: str, end: str = "\n") -> None:
    print("\n".join(map(printable, text.split("\n"))), end=end, file=sys.stderr, flush=True)
