"""`evergrant integrations` and `evergrant providers`: OAuth clients, and definitions of one's own."""

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated, cast

from cyclopts import App, Parameter

from evergrant.administration import Integration, ProviderVersion
from evergrant.cli.catalogue import check_catalogue
from evergrant.cli.options import DEFAULT_OPTIONS, Options
from evergrant.cli.output import Row, provider_row, show_one, show_rows
from evergrant.errors import BadRequest

File = Annotated[Path, Parameter(allow_leading_hyphen=True)]  # - is the standard input

_INTEGRATIONS = ("name", "provider", "client_id", "state", "problem", "redirect_uri")
_PROVIDERS = ("name", "display_name", "categories", "default_scopes")
_VERSIONS = ("version", "state", "share", "good", "bad", "proposed_by", "decided_by", "reason")


def list_providers(*, options: Options = DEFAULT_OPTIONS) -> None:
    """List the providers of the catalogue, this tenant's own among them."""
    with options.client() as client:
        show_rows((provider_row(it) for it in client.providers()), _PROVIDERS, options.output)


def propose(definition: File, /, *, rollout: Path | None = None, options: Options = DEFAULT_OPTIONS) -> None:
    """Propose a provider's definition. A worker checks it, and an admin decides.

    Parameters
    ----------
    definition
        A JSON file with what a file of the catalogue says; - reads it from the standard input.
    rollout
        A JSON file: shares, stage_s, enough, most_bad.
    """
    stages = _json(rollout) if rollout else None
    with options.client() as client:
        _show_version(client.propose_provider(_json(definition), rollout=stages), options)


def versions(provider: str, /, *, options: Options = DEFAULT_OPTIONS) -> None:
    """List the versions this tenant brought, the newest first."""
    with options.client() as client:
        found = (_version_row(it) for it in client.provider_versions(provider))
        show_rows(found, _VERSIONS, options.output)


def approve(
    provider: str,
    version: int,
    /,
    *,
    reason: str | None = None,
    accept_hosts: bool = False,
    options: Options = DEFAULT_OPTIONS,
) -> None:
    """Let a checked version in.

    Parameters
    ----------
    accept_hosts
        You have seen the finding that client secrets and tokens would go to new hosts.
    """
    with options.client() as client:
        found = client.approve_provider(provider, version, reason=reason, accept_hosts=accept_hosts)
        _show_version(found, options)


def reject(provider: str, version: int, /, *, reason: str, options: Options = DEFAULT_OPTIONS) -> None:
    """Turn a checked version down."""
    with options.client() as client:
        _show_version(client.reject_provider(provider, version, reason), options)


def roll_back(provider: str, version: int, /, *, reason: str, options: Options = DEFAULT_OPTIONS) -> None:
    """Have the version before a staged one answer again."""
    with options.client() as client:
        _show_version(client.roll_provider_back(provider, version, reason), options)


def list_integrations(*, options: Options = DEFAULT_OPTIONS) -> None:
    """List the OAuth clients that this app administers."""
    with options.client() as client:
        show_rows((_row(it) for it in client.integrations()), _INTEGRATIONS, options.output)


def get_integration(name: str, /, *, options: Options = DEFAULT_OPTIONS) -> None:
    """Show one OAuth client, with the redirect URI to register at the provider."""
    with options.client() as client:
        show_one(_row(client.integration(name)), options.output)


def put_integration(
    name: str,
    /,
    *,
    provider: str,
    client_id: str | None = None,
    client_secret_file: File | None = None,
    client_auth: str | None = None,
    registration: str | None = None,
    issuer: str | None = None,
    dpop: bool | None = None,
    param: tuple[str, ...] = (),
    scope: tuple[str, ...] = (),
    options: Options = DEFAULT_OPTIONS,
) -> None:
    """Create or change an OAuth client. What isn't given is as the provider's definition says.

    Parameters
    ----------
    client_secret_file
        A file with the client secret; - reads it from the standard input. Left out, the kept one stays.
    registration
        Instead of a client id: dynamic or metadata_document.
    dpop
        Have tokens bound to a key (RFC 9449).
    param
        A parameter of the provider's URLs, as NAME=VALUE.
    """
    members = {
        "provider": provider,
        "client_id": client_id,
        "client_secret": _secret(client_secret_file) if client_secret_file else None,
        "client_auth": client_auth,
        "registration": registration,
        "issuer": issuer,
        "dpop": dpop,
        "params": dict(_pair(it) for it in param) or None,
        "default_scopes": list(scope) or None,
    }
    given = {key: value for key, value in members.items() if value is not None}
    with options.client() as client:
        show_one(_row(client.put_integration(name, **given)), options.output)


def delete_integration(name: str, /, *, options: Options = DEFAULT_OPTIONS) -> None:
    """Delete an OAuth client with its secret. Refused while it has live connections."""
    with options.client() as client:
        client.delete_integration(name)


def rotate_secret(
    name: str,
    /,
    *,
    client_secret_file: File,
    overlap: float | None = None,
    options: Options = DEFAULT_OPTIONS,
) -> None:
    """Put a new client secret first; the one before it is tried as well, for a while.

    Parameters
    ----------
    client_secret_file
        A file with the new secret; - reads it from the standard input.
    overlap
        Seconds for which the old one is kept; a day without it.
    """
    kept = None if overlap is None else timedelta(seconds=overlap)
    with options.client() as client:
        changed = client.rotate_client_secret(name, _secret(client_secret_file), overlap=kept)
        show_one(_row(changed), options.output)


def roll_secret_back(name: str, /, *, options: Options = DEFAULT_OPTIONS) -> None:
    """The client secret before the rotation is the only one again."""
    with options.client() as client:
        show_one(_row(client.roll_client_secret_back(name)), options.output)


def integrations_app() -> App:
    app = App(name="integrations", help="OAuth clients at providers.")
    app.command(list_integrations, name=("ls", "list"))
    app.command(get_integration, name="get")
    app.command(put_integration, name="put")
    app.command(delete_integration, name="delete")
    app.command(rotate_secret)
    app.command(roll_secret_back)
    return app


def providers_app() -> App:
    app = App(name="providers", help="The catalogue, and definitions of your own.")
    app.default(list_providers)
    app.command(list_providers, name=("ls", "list"))
    app.command(check_catalogue, name="check")
    app.command(propose)
    app.command(versions)
    app.command(approve)
    app.command(reject)
    app.command(roll_back)
    return app


def _secret(file: Path) -> str:
    """Never on the command line: other users of the machine see that."""
    return _text(file).strip()


def _text(file: Path) -> str:
    if str(file) == "-":
        return sys.stdin.read()
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise _bad(f"{file}: {why}") from None


def _json(file: Path) -> dict[str, object]:
    try:
        value: object = json.loads(_text(file))
    except ValueError:
        raise _bad(f"{file} is not JSON") from None
    if not isinstance(value, dict):
        raise _bad(f"{file} is not a JSON object")
    return cast(dict[str, object], value)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise _bad(f"{text!r} is not NAME=VALUE")
    return name, value


def _bad(detail: str) -> BadRequest:
    return BadRequest(detail, code="invalid_request", repair="Correct the argument.")


def _row(it: Integration) -> Row:
    return dict(it.members)


def _version_row(it: ProviderVersion) -> Row:
    return {
        **{name: getattr(it, name) for name in ("name", *_VERSIONS)},
        "findings": [f"{found.check}: {found.level}: {found.detail}" for found in it.findings],
    }


def _show_version(it: ProviderVersion, options: Options) -> None:
    show_one(_version_row(it), options.output)
