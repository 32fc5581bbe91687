"""`evergrant init`: all that a first lease needs, and the program that leases it."""

import os
import re
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from getpass import getpass, getuser
from pathlib import Path
from typing import Any

from cyclopts import Parameter

from evergrant.api.models import Integration
from evergrant.cli.arguments import InputFile, Scopes, argument_error, read_secret
from evergrant.cli.commands.apps import FIRST_ACTIONS, key_in_file, put_widened
from evergrant.cli.configuration.kinds import BY_NAME, Key
from evergrant.cli.lease_program import require_replaceable, written_program
from evergrant.cli.options import DEFAULTS, Options, if_there, line_to_copy
from evergrant.cli.tables import Format, printable, row_of, show_one
from evergrant.errors import BadRequest, EvergrantError
from evergrant.grant_files import keep_out_of_git
from evergrant.models import State
from evergrant.origins import read_key_file
from evergrant.sync_client import Evergrant

_NAME = re.compile(r"[a-z0-9-]+", re.IGNORECASE)
_MOST_SHOWN = 20  # scopes
Where = Mapping[str, Any]  # the provider, and the issuer or the parameters
_HERE = "http://127.0.0.1/"  # evergrant connect listens on this machine, at any port


@Parameter(name="*")
@dataclass(frozen=True)
class Answers:
    """The options of `init`, of which it asks for the first five where they are missing."""

    provider: str | None = None
    "A provider of the catalogue, or the URL of any server that publishes its metadata."
    client_id: str | None = None
    """Your OAuth client's id. It is asked for after the redirect URI is shown. Left empty, a server that is
    given by its URL is asked to register a client (RFC 7591)."""
    client_secret_file: InputFile | None = None
    "A file with the client secret; - reads it from the standard input."
    scope: Scopes = ()
    """A scope to request; may be repeated. By default the provider's own, or openid where a server lists
    that."""
    subject: str | None = None
    "Your name for the person who will consent."
    api_base_url: str | None = None
    "Of a server that is given by its URL: where its API is, for calls through the gateway."
    name: str | None = None
    "The integration's name; by default the provider's, and server for a URL."
    app: str = "first-app"
    "The app's name."
    out: Path = Path("lease.py")
    "The program to write."


def init(*, answers: Answers = Answers(), options: Options = DEFAULTS) -> None:
    """Make an integration, an app, its permit and key, and a program that leases a token.

    Asks for the first five options where they are missing. After a mistake, run it again: what works is kept.
    """
    url, app, out, key = options.address(), answers.app, answers.out, Path(f"{answers.app}.key")
    provider = answers.provider or _ask("Provider, or your server's URL", "--provider")
    where = {"provider": "generic", "issuer": provider} if "://" in provider else {"provider": provider}
    if "issuer" not in where and not _NAME.fullmatch(provider):
        raise argument_error(f"{provider!r} is neither a provider's name nor a URL with https:// or http://")
    by_url = "issuer" in where
    name = answers.name or ("server" if by_url else provider)
    require_replaceable(out)
    if answers.subject is None and not sys.stdin.isatty():
        raise _missing("--subject")
    with options.client() as client, _reserved(client, name, where, answers.scope) as (integration, where):
        require_same_server(integration, where)
        uri = integration.redirect_uri
        _say(f"Register an OAuth client there with exactly this redirect URI:\n\n  {uri}\n")
        members = _client(integration, by_url, answers.client_id, answers.client_secret_file)
        if answers.api_base_url:
            members["params"] = {"api_base_url": answers.api_base_url}
        if scopes := answers.scope or _scopes_before(
            client, integration, None if by_url else provider, members
        ):
            members["default_scopes"] = list(scopes)
        have_client(client, integration, where, members)
        if by_url and not scopes:
            have_scopes(client, name, where)
        elif by_url:
            _note_unlisted(client, name, scopes)
        question = "Your name for the person who will consent"
        subject = answers.subject or _ask(question, "--subject", getuser())
        have_app(client, app, _HERE)
        have_permit(client, app, name, subject)
        have_key(client, url, app, key)
    connect = _write_program(out, url, key, name, subject, options)
    if options.output is not Format.TABLE:
        made = {"integration": name, "redirect_uri": uri, "app": app, "subject": subject}
        show_one({**made, "key_file": str(key), "program": str(out)}, options.output)
    _say(f"Made the integration {name}, the app {app} with a permit for {subject}, {key} and {out}.")
    _say(f"Next:\n\n  {connect}\n  {line_to_copy('python', str(out))}")
    _say("\nWith a URL of the provider's API behind it, the second gets that with the token.")


@contextmanager
def _reserved(
    client: Evergrant, name: str, where: Where, scopes: Scopes
) -> Generator[tuple[Integration, Where]]:
    """The integration of this name, or a new one that waits for its client; and where it really is.

    The metadata of a server that is given by its URL is read before anybody registers a client there, or
    types its secret. A refused `init` deletes the integration that it has made, unless somebody may have
    registered a client with its redirect URI: then the next `init` goes on with it.
    """
    before = integration = if_there(client.integration, name)
    shown = False
    try:
        if integration is None or ("issuer" in where and _waits_for_client(integration)):
            early = {"default_scopes": list(scopes)} if scopes and "issuer" in where else {}
            integration, where = _put_new(client, name, where, early)
        shown = True
        yield integration, where
    except EvergrantError:
        with suppress(EvergrantError):
            made = None if before else if_there(client.integration, name)
            if made and (not shown or (made.state == "failed" and made.registration)):
                client.delete_integration(name)
            elif made and made.state == "failed":
                delete = line_to_copy("evergrant", "integrations", "delete", name)
                _say(
                    f"The integration {name} keeps its redirect URI for the next init. Without one: {delete}"
                )
        raise


def _waits_for_client(integration: Integration) -> bool:
    return integration.state != "ready" and not (integration.client_id or integration.registration)


def _write_program(out: Path, url: str, key: Path, name: str, subject: str, options: Options) -> str:
    """Write the program that leases a token. Returns the command that connects the subject first."""
    elsewhere = ("--url", options.url) if options.url else ()
    flags = ("--open", "--wait", "--api-key-file", str(key), *elsewhere)
    connect = line_to_copy("evergrant", "connect", name, subject, *flags)
    text = written_program(url, os.path.relpath(key, out.parent), name, subject, connect)
    out.write_text(text, encoding="utf-8")
    keep_out_of_git(out)
    return connect


def _client(
    integration: Integration, by_url: bool, client_id: str | None, secret_file: Path | None
) -> dict[str, Any]:
    """The members that say which OAuth client it is; asked for where they are missing."""
    registered = integration.state == "ready"
    if client_id is None and registered and integration.registration:
        return {}
    if client_id is None and by_url and not registered:
        client_id = _ask("Client id (empty: have the server register one)", "--client-id", "")
    elif client_id is None:
        client_id = _ask("Client id", "--client-id", integration.client_id or None)
    if not client_id:
        return {"registration": "dynamic"}
    kept = registered and integration.has_client_secret
    if secret_file is not None:
        secret = read_secret(secret_file)
    elif sys.stdin.isatty():
        empty = "empty: the stored one" if kept else "empty: a public client"
        secret = getpass(f"Client secret (hidden; {empty}): ", sys.stderr).strip()
    elif kept:
        secret = ""
    else:
        raise _missing("--client-secret-file")
    if not secret:
        return {"client_id": client_id} if kept else {"client_id": client_id, "client_auth": "none"}
    return {"client_id": client_id, "client_secret": secret}


def _scopes_before(
    client: Evergrant, integration: Integration, provider: str | None, members: Mapping[str, Any]
) -> tuple[str, ...]:
    """The scopes of a provider of the catalogue, or those that a server is to register; a server's own list
    is known once its metadata has been read. Empty: as the integration or the provider has them."""
    if not sys.stdin.isatty() or integration.default_scopes:
        return ()
    if provider is None:
        dynamic = members.get("registration") == "dynamic"
        return _asked_scopes("Scopes to register the client for", (), "the server's own") if dynamic else ()
    nothing: Mapping[str, Any] = {}
    facts = next((row.facts for row in client.providers() if row.name == provider), nothing)
    usual = tuple(map(str, facts.get("default_scopes") or (("openid",) if facts.get("openid") else ())))
    documented = f"; {facts['docs_url']} lists them" if facts.get("docs_url") else ""
    return _asked_scopes(f"Scopes to request, with spaces between{documented}", usual, "none")


def have_scopes(client: Evergrant, name: str, where: Where) -> None:
    """Default scopes for a server that lists its own: those that are chosen, else `openid` where it is
    listed. A request without a scope is refused by many."""
    integration = client.integration(name)
    supported = integration.supported_scopes
    if integration.default_scopes or not supported or integration.state != "ready":
        return
    usual = ("openid",) if "openid" in supported else ()
    if sys.stdin.isatty():
        rest = f" and {len(supported) - _MOST_SHOWN} more" if len(supported) > _MOST_SHOWN else ""
        _say(f"The server supports the scopes {' '.join(supported[:_MOST_SHOWN])}{rest}")
        usual = _asked_scopes("Scopes to request, with spaces between", usual, "the server's own")
    elif usual:
        _say("Requested is openid, which the server supports; --scope requests others.")
    if usual:
        have_client(client, integration, where, {"default_scopes": list(usual)})


def _note_unlisted(client: Evergrant, name: str, scopes: Sequence[str]) -> None:
    """Say which scopes the server's metadata doesn't list: it need not list all (RFC 8414 section 2)."""
    integration = if_there(client.integration, name)
    supported = integration.supported_scopes if integration else ()
    unlisted = [scope for scope in scopes if scope not in supported] if supported else []
    if unlisted:
        _say(f"Not among the scopes that the server lists: {' '.join(unlisted)}.")
        _say(f"If a consent is refused (invalid_scope), use others: {' '.join(supported[:_MOST_SHOWN])}")


def _asked_scopes(question: str, usual: tuple[str, ...], empty: str) -> tuple[str, ...]:
    if not usual:
        question += f" (empty: {empty})"
    answer = _ask(question, "--scope", " ".join(usual))
    return tuple(filter(None, re.split(r"[,\s]+", answer)))


def _ask(question: str, flag: str, default: str | None = None) -> str:
    if not sys.stdin.isatty():
        raise _missing(flag)
    _say(f"{question}{f' [{default}]' if default else ''}: ", end="")
    answer = sys.stdin.readline().strip() or default
    if answer is None:
        raise argument_error(f"{flag} is missing")
    return answer


def _missing(flag: str) -> BadRequest:
    return argument_error(f"{flag} is missing, and there is no terminal to ask at")


def _say(text: str, end: str = "\n") -> None:
    print("\n".join(map(printable, text.split("\n"))), end=end, file=sys.stderr, flush=True)


_KEPT = (
    *("client_id", "params", "client_auth", "scope_ceiling", "dpop", "binding", "login", "on_reconnect"),
    "identity_provider",
)


def require_same_server(integration: Integration, where: Where) -> None:
    """Refuse to move an integration that works to another provider."""
    server = integration.issuer or integration.params.get("url") or integration.provider
    wanted = where.get("issuer") or where.get("params", {}).get("url") or where["provider"]
    if integration.state == "ready" and str(server).rstrip("/") != wanted.rstrip("/"):
        why = f"the integration {integration.name} is there already, for {server}"
        raise BadRequest(why, code="already_exists", repair="Give this one another name: --name.")


def have_client(
    client: Evergrant, integration: Integration, where: Where, members: Mapping[str, Any]
) -> None:
    """The integration with this OAuth client and these scopes. While connections use it, only its secret
    changes."""
    if integration.state != "ready":
        _put_new(client, integration.name, where, members)
        return
    row: dict[str, Any] = row_of(integration)
    compared = ("client_id", "params", "default_scopes")
    changed = [name for name in compared if name in members and members[name] != row[name]]
    in_use = next(client.connections(integration=integration.name, state=State.ACTIVE), None) is not None
    if in_use and changed:
        why = f"connections use the integration {integration.name}, with another {' and '.join(changed)}"
        raise BadRequest(why, code="integration_in_use", repair="Give this one another name: --name.")
    kept: dict[str, Any] = {name: row[name] for name in (*_KEPT, "provider", "issuer")}
    if integration.registration and "client_id" not in members:
        kept |= {"registration": integration.registration, "client_id": None, "client_auth": None}
    kept.update(members)
    if changed:
        client.put_integration(integration.name, **kept)
    elif "client_secret" in members and in_use:
        _keep_secret(client, integration.name, kept)
    elif "client_secret" in members:
        client.rotate_client_secret(integration.name, str(members["client_secret"]), overlap=timedelta(0))


def _keep_secret(client: Evergrant, name: str, members: Mapping[str, Any]) -> None:
    """Leave the secret that connections use, and say so if another one came. A dry run compares them."""
    compare = BY_NAME["integration"].call(Key("integration", None, name), members, dry_run="true")
    if "client_secret" in client.send(compare).secrets:
        rotate = ("integrations", "rotate-secret", name, "--client-secret-file", "FILE")
        _say(
            f"Connections use the integration {name}: its stored client secret stays, and this one is not it."
        )
        _say(f"To replace it, which keeps the stored one for a day: {line_to_copy('evergrant', *rotate)}")


def _put_new(
    client: Evergrant, name: str, where: Where, members: Mapping[str, Any]
) -> tuple[Integration, Where]:
    """Put the integration. A URL that is no issuer is another one's by a final slash, or an MCP server's.

    With and without the slash there is one metadata document (RFC 8414 section 3.1): the server that answers
    is the one that was named.
    """
    try:
        return client.put_integration(name, **{**members, **where}), where
    except EvergrantError as refused:
        if refused.code != "discovery_failed" or "issuer" not in where:
            raise
        typed = where["issuer"]
        issuer = typed.removesuffix("/") if typed.endswith("/") else f"{typed}/"
        if refused.detail.endswith(f" another issuer: {issuer}"):
            _say(f"The server's own name is {issuer}: that is its issuer.")
            where = {**where, "issuer": issuer}
            return client.put_integration(name, **{**members, **where}), where
        return _put_mcp(client, name, typed, members, refused)


def _put_mcp(
    client: Evergrant, name: str, url: str, members: Mapping[str, Any], refused: EvergrantError
) -> tuple[Integration, Where]:
    """Put the integration for an MCP server, whose metadata names its issuer (RFC 9728). Where that registers
    no client, the integration waits for one.

    Raises `refused` if it is none.
    """
    where: Where = {"provider": "mcp", "params": {"url": url}}
    others = ("registration", "params")
    plain_members = {member: value for member, value in members.items() if member not in others}
    try:
        integration = client.put_integration(name, **{**plain_members, **where})
    except EvergrantError as second:
        if second.code in ("discovery_failed", "invalid_request", "not_found"):
            raise refused from None
        if second.code != "client_rejected" or members.get("client_id"):
            raise
        _say(printable(second.detail))
        integration = client.integration(name)
    _say(f"{url} is an MCP server, and names who issues tokens for it.")
    return integration, where


def have_app(client: Evergrant, app: str, return_to: str) -> None:
    """The app, which browsers may come back to."""
    now = if_there(client.app, app)
    if now is None:
        client.put_app(app, return_to=(return_to,))
    elif return_to not in now.return_to:
        addresses = (*now.return_to, return_to)
        client.put_app(app, return_to=addresses, lease_limit=now.lease_limit, disabled=now.disabled)


def have_permit(client: Evergrant, app: str, integration: str, subject: str) -> None:
    """A permit of the app to connect the subject and to lease its tokens, named for the integration."""
    permit = if_there(client.permit, app, integration)
    if permit is None:
        actions = FIRST_ACTIONS
        client.put_permit(app, integration, integration=integration, subjects=(subject,), actions=actions)
    elif permit.effect == "allow" and {subject, "*"}.isdisjoint(permit.subjects):
        put_widened(client, app, permit, (subject,), ())


def have_key(client: Evergrant, url: str, app: str, path: Path) -> None:
    """A key of the app in the file: the one that is there, if the server accepts it, or a new one."""
    if not path.exists():
        key_in_file(client, app, path)
        return
    with Evergrant(url, read_key_file(path), allow_plain_http=True) as app_client:
        try:
            next(app_client.connections(), None)
        except BadRequest as refused:
            why = f"the key in {path} is not accepted by {url}"
            repair = f"Remove it (rm {path}), or choose another --app; then run this again."
            raise BadRequest(why, code=refused.code, repair=repair) from None
