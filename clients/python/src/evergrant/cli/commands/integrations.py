"""`evergrant integrations` and `evergrant providers`: OAuth clients, and the tenant's own definitions.

`evergrant campaigns`: many subjects consent to another client of an integration, wave by wave.
"""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

from cyclopts import App, Parameter

from evergrant.api.models import FailureCause, Integration
from evergrant.cli.arguments import InputFile, Scopes, Seconds, name_and_value, read_secret
from evergrant.cli.commands.incidents import report
from evergrant.cli.options import DEFAULTS, Options, if_there
from evergrant.cli.tables import Format, Row, members_of, row_of, show_one, show_rows
from evergrant.cli.verbs import verb
from evergrant.errors import BadRequest
from evergrant.sync_client import Evergrant

_INTEGRATIONS = ("name", "provider", "client_id", "state", "problem")
_RESERVED = ("name", "provider", "state", "redirect_uri")
_PUT = ("name", "provider", "client_id", "default_scopes", "state", "problem", "redirect_uri")
_HEALTH = ("name", "provider", "state", "problem")
_COUNTS = ("active", "failing", "needs_reauth", "pending_consent", "revoking")
_CAUSE = (
    "code",
    "connections",
    "repairer",
    "since",
    "next_step",
    "next_at",
    "provider_said",
    "connection_id",
)

integrations = App(name="integrations")

verb(
    integrations,
    "ls list",
    "integrations",
    "List the OAuth clients that this app administers.",
    _INTEGRATIONS,
)
verb(
    integrations,
    "get",
    "integration",
    "Show one OAuth client, with the redirect URI to register at the provider.",
)
verb(
    integrations,
    "delete rm",
    "delete_integration",
    "Delete an OAuth client with its secret. Refused while it has live connections.",
)
verb(
    integrations,
    "roll-secret-back",
    "roll_client_secret_back",
    "Make the client secret from before the rotation the only one again.",
)


@integrations.command
def health(name: str, /, *, options: Options = DEFAULTS) -> None:
    """Show what fails at an OAuth client: by cause, in the provider's words, since when, whose turn it is.

    A cause whose `is_sole` is true can't be decided yet: it is the only connection, and the provider refuses
    it by an unknown error. `-o json` has every member, such as the repair.
    """
    with options.client() as client:
        integration = client.integration_health(name)
    if options.output is not Format.TABLE:
        show_one(integration, options.output)
        return
    counts = {count: getattr(integration, count) for count in _COUNTS}
    if not integration.complete:
        counts = {
            count: number if count == "failing" else f"at least {number}" for count, number in counts.items()
        }
    show_one({**members_of(integration, _HEALTH), **counts}, options.output)
    print()
    show_rows(map(_cause_row, integration.causes), _CAUSE, options.output)


def _cause_row(cause: FailureCause) -> Row:
    """A cause with the provider's words in one cell, the most frequent first."""
    words = [
        " ".join(filter(None, (str(refusal.status or ""), refusal.error, refusal.description)))
        for refusal in cause.provider_said
    ]
    step = "can't be decided yet: the only connection" if cause.is_sole else cause.next_step
    return {**row_of(cause), "provider_said": "; ".join(words) or None, "next_step": step}


@integrations.command
def redirect_uri(
    name: str, /, *, provider: str | None = None, issuer: str | None = None, options: Options = DEFAULTS
) -> None:
    """Print the redirect URI to register at the provider, before there is a client id.

    Args:
        provider: Of a new integration, which then waits for its client id.
        issuer: Of a new integration with the provider generic: the server's URL.
    """
    with options.client() as client:
        integration = reserve(client, name, provider, issuer)
    if options.output is Format.TABLE:
        print(integration.redirect_uri)
    else:
        show_one(members_of(integration, _RESERVED), options.output)


def reserve(client: Evergrant, name: str, provider: str | None, issuer: str | None) -> Integration:
    """The integration of this name, or a new one that waits for its client. Raises EvergrantError."""
    integration = if_there(client.integration, name)
    if integration is not None:
        return integration
    if provider is None:
        why = f"there is no integration {name} yet"
        raise BadRequest(why, code="not_found", repair="Name its provider: --provider github.")
    return client.put_integration(name, provider, issuer=issuer)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class OAuthClient:
    """The options of `put`: an OAuth client at a provider."""

    provider: str
    client_id: str | None = None
    client_secret_file: InputFile | None = None
    "A file with the client secret; - reads it from the standard input. Left out, the secret stays."
    client_auth: str | None = None
    registration: str | None = None
    "Instead of a client id: dynamic, metadata_document, or automatic."
    issuer: str | None = None
    url: str | None = None
    "The MCP server's URL, with the provider mcp. It needs nothing else."
    api_base_url: str | None = None
    "With the provider generic: where the server's API is, for calls through the gateway."
    dpop: bool | None = None
    "Have tokens bound to a key (RFC 9449)."
    binding: str | None = None
    "Who confirms that the subject consented: app (the default), app_first, oidc or none."
    login: str | None = None
    "With the binding oidc: the OAuth client at your OpenID Connect issuer where subjects log in."
    login_domain: tuple[str, ...] = ()
    "Subjects are named by a verified email address of such a domain, not by their sub."
    on_reconnect: str | None = None
    "Which account a later consent may be given with: same (the default) or any."
    after_grant_over: str | None = None
    "What becomes of a dead grant's access token: lease it until its date (the default), or refuse."
    identity_provider: str | None = None
    """The integration of the identity provider that grants access here (ID-JAG), so that no subject has to
    consent."""
    param: tuple[str, ...] = ()
    "A parameter of the provider's URLs, as NAME=VALUE."
    scope: Scopes = ()


@integrations.command(name="put")
def put_integration(name: str, /, *, sent: OAuthClient, options: Options = DEFAULTS) -> None:
    """Create or replace an OAuth client. The provider's definition decides where an option is left out."""
    urls = {"url": sent.url, "api_base_url": sent.api_base_url}
    params = dict(name_and_value(text) for text in sent.param) | {
        name: url for name, url in urls.items() if url
    }
    secret = read_secret(sent.client_secret_file) if sent.client_secret_file else None
    with options.client() as client:
        made = client.put_integration(
            name,
            sent.provider,
            client_id=sent.client_id,
            client_secret=secret,
            client_auth=sent.client_auth,
            registration=sent.registration,
            issuer=sent.issuer,
            dpop=sent.dpop,
            binding=sent.binding,
            login=_login(sent.login, sent.login_domain),
            on_reconnect=sent.on_reconnect,
            after_grant_over=sent.after_grant_over,
            identity_provider=sent.identity_provider,
            params=params or None,
            default_scopes=sent.scope or None,
        )
    show_one(members_of(made, _PUT) if options.output is Format.TABLE else made, options.output)


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
        show_one(changed, options.output)


def _login(integration: str | None, domains: tuple[str, ...]) -> dict[str, object] | None:
    by_email = {"claim": "email", "domains": list(domains)} if domains else {}
    return {"integration": integration, **by_email} if integration or domains else None


End = Literal["keep", "stop"]
_CAMPAIGNS = ("id", "integration", "state", "paused", "consented", "asked", "selected", "ends_at", "reason")
_WAVES = ("begins_at", "connections", "subjects", "leases")
_MOVED = ("connection_id", "subject", "wave", "leases", "asked_at", "reminders", "step", "outcome", "state")

campaigns = App(name="campaigns")

verb(campaigns, "ls list", "campaigns", "List the campaigns of the tenant.", _CAMPAIGNS)
verb(campaigns, "show get", "campaign", "Show how far a campaign is, wave by wave.")
verb(campaigns, "pause", "pause_campaign", "Ask and remind nobody, until it goes on.")
verb(campaigns, "resume", "resume_campaign", "Have a paused campaign go on.")
verb(campaigns, "undo", "undo_campaign", "Give both integrations their names of before, before any wave.")


@campaigns.command(name="plan")
def plan_campaign(
    integration: str,
    successor: str,
    /,
    *,
    wave_size: int = 100,
    every: float = 86_400,
    first_wave: float = 3_600,
    options: Options = DEFAULTS,
) -> None:
    """Show the waves that would follow, by the leases of the last month. Changes nothing.

    Args:
        integration: The integration, as apps name it.
        successor: The integration with the new client, which has no connections.
        wave_size: Connections of a wave; the least used come first.
        every: Seconds between two waves.
        first_wave: Seconds until the first one.
    """
    with options.client() as client:
        planned = client.campaign_plan(
            integration,
            successor,
            wave_size=wave_size,
            every=timedelta(seconds=every),
            first_wave=timedelta(seconds=first_wave),
        )
    if options.output is not Format.TABLE:
        show_one(planned, options.output)
        return
    most = "" if planned.complete else "at least "
    print(f"{most}{planned.connections:,} connections; to confirm: --confirm {planned.confirm}")
    show_rows(planned.waves, _WAVES, options.output)


@campaigns.command(name="start")
def start_campaign(
    integration: str,
    successor: str,
    /,
    *,
    reason: str,
    confirm: str,
    wave_size: int | None = None,
    every: float | None = None,
    first_wave: float | None = None,
    remind: tuple[float, ...] | None = None,
    lasts: float | None = None,
    end: End | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Have the subjects of an integration's connections consent to another client. Apps change nothing.

    Args:
        integration: The integration, as apps name it.
        successor: The integration with the new client, which gets its name.
        reason: For the audit log and the report: name a ticket, and no person.
        confirm: The integration's name, once more.
        wave_size: Connections of a wave, by default 100; the least used come first.
        every: Seconds between two waves, by default a day.
        first_wave: Seconds until the first one, by default an hour; until then it can be undone.
        remind: Seconds after which who was asked is reminded, by default three days and a week.
        lasts: Seconds until it ends, by default 30 days.
        end: Whose subject hasn't consented then goes on with the client of before (keep), or is stopped.
    """
    with options.client() as client:
        begun = client.begin_campaign(
            integration,
            successor,
            reason,
            confirm=confirm,
            wave_size=wave_size,
            every=_seconds(every),
            first_wave=_seconds(first_wave),
            remind=remind,
            lasts=_seconds(lasts),
            end=end,
        )
    show_one(begun, options.output)


@campaigns.command(name="end")
def end_campaign(campaign_id: str, /, *, end: End | None = None, options: Options = DEFAULTS) -> None:
    """End a campaign whose waves have begun, before its time.

    Args:
        end: Whose subject hasn't consented goes on with the client of before (keep), or is stopped.
    """
    with options.client() as client:
        show_one(client.end_campaign(campaign_id, end=end), options.output)


@campaigns.command(name="connections")
def campaign_connections(
    campaign_id: str, /, *, outcome: str | None = None, options: Options = DEFAULTS
) -> None:
    """List what became of each connection of a campaign.

    Args:
        outcome: Only those that have ended so, such as consented, kept, stopped or gone.
    """
    with options.client() as client:
        show_rows(client.campaign_connections(campaign_id, outcome=outcome), _MOVED, options.output)


@campaigns.command(name="report")
def campaign_report(campaign_id: str, /, *, out: Path | None = None, options: Options = DEFAULTS) -> None:
    """Print the signed report of a campaign that is done. `evergrant incident verify` checks it.

    Args:
        out: A new file for it.
    """
    report(campaign_id, out=out, options=options)


def _seconds(number: float | None) -> timedelta | None:
    return None if number is None else timedelta(seconds=number)
