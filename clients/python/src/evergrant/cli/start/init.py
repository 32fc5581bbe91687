"""`evergrant init`: from at most four questions to a program that leases a token."""

import os
import re
import sys
from getpass import getpass, getuser
from pathlib import Path

from evergrant.calls.integrations import Integration
from evergrant.cli.apps import change_app, key_in_file
from evergrant.cli.integrations import reserve
from evergrant.cli.output import DEFAULTS, InputFile, Options, argument_error, read_text
from evergrant.cli.show.tables import Format, printable, show_one
from evergrant.cli.start.lines import line_to_copy
from evergrant.cli.start.program import require_replaceable, written_program
from evergrant.errors import BadRequest
from evergrant.origins import read_key_file
from evergrant.sync_client import Evergrant

_NAME = re.compile(r"[a-z0-9-]+", re.IGNORECASE)
_HERE = "http://127.0.0.1/"  # evergrant connect listens on this machine, at any port


def init(
    *,
    provider: str | None = None,
    client_id: str | None = None,
    client_secret_file: InputFile | None = None,
    subject: str | None = None,
    scope: tuple[str, ...] = (),
    name: str | None = None,
    app: str = "first-app",
    out: Path = Path("lease.py"),
    options: Options = DEFAULTS,
) -> None:
    """Make an integration, an app, its permit and key, and a program that leases a token.

    Asks for the first four options where they are missing. After a mistake, run it again.

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
        _say(f"Register an OAuth client there with exactly this redirect URI:\n\n  {found.redirect_uri}\n")
        members = {**where, **_client(found, "issuer" in where, client_id, client_secret_file)}
        subject = subject or _ask("Your name for the person who will consent", "--subject", getuser())
        if scope:
            members["default_scopes"] = list(scope)
        client.put_integration(name, **members)
        change_app(client, app, return_to=(_HERE,))
        client.put_permit(app, name, integration=name, subjects=(subject,), actions=("token", "connect"))
        _have_key(client, url, app, key)
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


def _client(
    found: Integration, by_url: bool, client_id: str | None, secret_file: Path | None
) -> dict[str, object]:
    """The members that say which OAuth client it is; asked for where they are missing."""
    if client_id is None:
        empty = "Client id (empty: have the server register one)" if by_url else "Client id"
        client_id = _ask(empty, "--client-id", "" if by_url else None)
    if not client_id:
        return {"registration": "dynamic"}
    if secret_file is not None:
        secret = read_text(secret_file).strip()
    elif found.client_id == client_id and found.members.get("has_client_secret"):
        return {"client_id": client_id}
    elif sys.stdin.isatty():
        secret = getpass("Client secret (hidden; empty for a public client): ", sys.stderr).strip()
    else:
        raise argument_error(
            "the client secret is missing: --client-secret-file FILE, or - for standard input"
        )
    return {"client_id": client_id, **({"client_secret": secret} if secret else {"client_auth": "none"})}


def _have_key(client: Evergrant, url: str, app: str, path: Path) -> None:
    """A key of the app in the file: the one that is there, if the server accepts it, or a new one."""
    if not path.exists():
        key_in_file(client, app, path)
        return
    with Evergrant(url, read_key_file(path), allow_plain_http=True) as own:
        try:
            next(own.connections(), None)
        except BadRequest as refused:
            why = f"the key in {path} is not accepted by {url}"
            repair = f"Remove it (rm {path}), or choose another --app; then run this again."
            raise BadRequest(why, code=refused.code, repair=repair) from None


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
