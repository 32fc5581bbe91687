"""`evergrant integrations` and `evergrant providers`: OAuth clients, and the tenant's own definitions."""

from datetime import timedelta
from pathlib import Path

from cyclopts import App

from evergrant.calls.integrations import Integration, ProviderVersion
from evergrant.cli.given.secrets import read_secret
from evergrant.cli.given.values import Scopes, Seconds
from evergrant.cli.output import (
    DEFAULTS,
    InputFile,
    Options,
    name_and_value,
    read_object,
    row_of,
)
from evergrant.cli.show.tables import Format, Row, show_one, show_rows
from evergrant.errors import BadRequest
from evergrant.sync_client import Evergrant

_INTEGRATIONS = ("name", "provider", "client_id", "state", "problem")
_RESERVED = ("name", "provider", "state", "redirect_uri")
_PUT = ("name", "provider", "client_id", "default_scopes", "state", "problem", "redirect_uri")
_PROVIDERS = ("name", "display_name", "categories", "default_scopes")
_VERSIONS = ("version", "state", "share", "succeeded", "failed", "proposed_by", "decided_by", "reason")

integrations = App(name="integrations", help="OAuth clients at providers.")
providers = App(name="providers", help="The catalogue, and definitions of your own.")


@providers.default
@providers.command(name=("ls", "list"))
def list_providers(*, options: Options = DEFAULTS) -> None:
    """List the providers of the catalogue, with this tenant's own definitions."""
    with options.client() as client:
        show_rows((provider.facts for provider in client.providers()), _PROVIDERS, options.output)


@providers.command
def propose(definition: InputFile, /, *, rollout: Path | None = None, options: Options = DEFAULTS) -> None:
    """Propose a provider's definition. A worker checks it, and an admin decides.

    Args:
        definition: A YAML or JSON file with the members of a catalogue file; - reads it from the standard
            input.
        rollout: A YAML or JSON file: shares, stage_s, enough, most_bad.
    """
    stages = read_object(rollout) if rollout else None
    with options.client() as client:
        _show_version(client.propose_provider(read_object(definition), rollout=stages), options)


@providers.command
def versions(provider: str, /, *, options: Options = DEFAULTS) -> None:
    """List the versions that this tenant proposed, the newest first."""
    with options.client() as client:
        found = (_version_row(version) for version in client.provider_versions(provider))
        show_rows(found, _VERSIONS, options.output)


@providers.command
def approve(
    provider: str,
    version: int,
    /,
    *,
    reason: str | None = None,
    accept_hosts: bool = False,
    options: Options = DEFAULTS,
) -> None:
    """Approve a checked version.

    Args:
        accept_hosts: You have read the finding that client secrets and tokens would go to new hosts.
    """
    with options.client() as client:
        approved = client.approve_provider(provider, version, reason=reason, accept_hosts=accept_hosts)
        _show_version(approved, options)


@providers.command
def reject(provider: str, version: int, /, *, reason: str, options: Options = DEFAULTS) -> None:
    """Reject a checked version."""
    with options.client() as client:
        _show_version(client.reject_provider(provider, version, reason), options)


@providers.command
def roll_back(provider: str, version: int, /, *, reason: str, options: Options = DEFAULTS) -> None:
    """Put the version before a staged one back into service."""
    with options.client() as client:
        _show_version(client.roll_provider_back(provider, version, reason), options)


@integrations.command(name=("ls", "list"))
def list_integrations(*, options: Options = DEFAULTS) -> None:
    """List the OAuth clients that this app administers."""
    with options.client() as client:
        show_rows((found.members for found in client.integrations()), _INTEGRATIONS, options.output)


@integrations.command(name="get")
def get_integration(name: str, /, *, options: Options = DEFAULTS) -> None:
    """Show one OAuth client, with the redirect URI to register at the provider."""
    with options.client() as client:
        show_one(client.integration(name).members, options.output)


@integrations.command
def redirect_uri(
    name: str,
    /,
    *,
    provider: str | None = None,
    issuer: str | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Print the redirect URI to register at the provider, before there is a client id.

    Args:
        provider: Of a new integration, which then waits for its client id.
        issuer: Of a new integration with the provider generic: the server's URL.
    """
    with options.client() as client:
        found = reserve(client, name, provider, issuer)
    if options.output is Format.TABLE:
        print(found.redirect_uri)
    else:
        show_one({name: found.members[name] for name in _RESERVED}, options.output)


def reserve(client: Evergrant, name: str, provider: str | None, issuer: str | None) -> Integration:
    """The integration of this name, or a new one that waits for its client. Raises EvergrantError."""
    try:
        return client.integration(name)
    except BadRequest as missing:
        if missing.code != "not_found":
            raise
    if provider is None:
        why = f"there is no integration {name} yet"
        raise BadRequest(why, code="not_found", repair="Name its provider: --provider github.")
    return client.put_integration(name, provider=provider, **({"issuer": issuer} if issuer else {}))


@integrations.command(name="put")
def put_integration(
    name: str,
    /,
    *,
    provider: str,
    client_id: str | None = None,
    client_secret_file: InputFile | None = None,
    client_auth: str | None = None,
    registration: str | None = None,
    issuer: str | None = None,
    url: str | None = None,
    dpop: bool | None = None,
    binding: str | None = None,
    login: str | None = None,
    login_domain: tuple[str, ...] = (),
    on_reconnect: str | None = None,
    identity_provider: str | None = None,
    param: tuple[str, ...] = (),
    scope: Scopes = (),
    options: Options = DEFAULTS,
) -> None:
    """Create or replace an OAuth client. The provider's definition decides where an option is left out.

    Args:
        client_secret_file: A file with the client secret; - reads it from the standard input. Left out, the
            secret stays.
        registration: Instead of a client id: dynamic, metadata_document, or automatic.
        url: The MCP server's URL, with the provider mcp. It needs nothing else.
        dpop: Have tokens bound to a key (RFC 9449).
        binding: Who confirms that the subject consented: app (the default), app_first, oidc or none.
        login: With the binding oidc: the OAuth client at your OpenID Connect issuer where subjects log in.
        login_domain: Subjects are named by a verified email address of such a domain, not by their sub.
        on_reconnect: Which account a later consent may be given with: same (the default) or any.
        identity_provider: The integration of the identity provider that grants access here (ID-JAG), so that
            no subject has to consent.
        param: A parameter of the provider's URLs, as NAME=VALUE.
    """
    members = {
        "provider": provider,
        "client_id": client_id,
        "client_secret": read_secret(client_secret_file) if client_secret_file else None,
        "client_auth": client_auth,
        "registration": registration,
        "issuer": issuer,
        "dpop": dpop,
        "binding": binding,
        "login": _login(login, login_domain),
        "on_reconnect": on_reconnect,
        "identity_provider": identity_provider,
        "params": dict(name_and_value(text) for text in param) | ({"url": url} if url else {}) or None,
        "default_scopes": list(scope) or None,
    }
    given = {key: value for key, value in members.items() if value is not None}
    with options.client() as client:
        made = client.put_integration(name, **given).members
    short = {name: made.get(name) for name in _PUT} if options.output is Format.TABLE else made
    show_one(short, options.output)


@integrations.command(name=("delete", "rm"))
def delete_integration(name: str, /, *, options: Options = DEFAULTS) -> None:
    """Delete an OAuth client with its secret. Refused while it has live connections."""
    with options.client() as client:
        client.delete_integration(name)


@integrations.command
def rotate_secret(
    name: str,
    /,
    *,
    client_secret_file: InputFile,
    overlap: Seconds | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Put a new client secret first; the previous one is tried too, for a while.

    Args:
        client_secret_file: A file with the new secret; - reads it from the standard input.
        overlap: Seconds for which the previous one is kept; a day by default.
    """
    overlap_time = None if overlap is None else timedelta(seconds=overlap)
    with options.client() as client:
        changed = client.rotate_client_secret(name, read_secret(client_secret_file), overlap=overlap_time)
        show_one(changed.members, options.output)


@integrations.command
def roll_secret_back(name: str, /, *, options: Options = DEFAULTS) -> None:
    """Make the client secret from before the rotation the only one again."""
    with options.client() as client:
        show_one(client.roll_client_secret_back(name).members, options.output)


def _login(integration: str | None, domains: tuple[str, ...]) -> dict[str, object] | None:
    by_email = {"claim": "email", "domains": list(domains)} if domains else {}
    return {"integration": integration, **by_email} if integration or domains else None


def _version_row(version: ProviderVersion) -> Row:
    findings = [f"{found.check}: {found.level}: {found.detail}" for found in version.findings]
    return {**row_of(version), "findings": findings}


def _show_version(version: ProviderVersion, options: Options) -> None:
    show_one(_version_row(version), options.output)
