"""`evergrant campaigns`: many subjects consent to another client of an integration, wave by wave."""

from datetime import timedelta
from pathlib import Path
from typing import Literal

from cyclopts import App

from evergrant.cli.commands.incidents import report
from evergrant.cli.options import DEFAULTS, Options
from evergrant.cli.tables import Format, show_one, show_rows
from evergrant.cli.verbs import verb

End = Literal["keep", "stop"]
_CAMPAIGNS = ("id", "integration", "state", "paused", "consented", "asked", "selected", "ends_at", "reason")
_WAVES = ("begins_at", "connections", "subjects", "leases")
_CONNECTIONS = ("connection_id", "wave", "leases", "asked_at", "reminders", "step", "outcome", "state")

campaigns = App(name="campaigns")

verb(campaigns, "ls list", "campaigns", "List the campaigns of the tenant.", _CAMPAIGNS)
verb(campaigns, "show get", "campaign", "Show how far a campaign is, wave by wave.")
verb(campaigns, "pause", "pause_campaign", "Ask and remind nobody, until it goes on.")
verb(campaigns, "resume", "resume_campaign", "Have a paused campaign go on.")
verb(campaigns, "undo", "undo_campaign", "Give both integrations their names of before, before any wave.")


@campaigns.command
def plan(
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


@campaigns.command
def start(
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


@campaigns.command
def connections(campaign_id: str, /, *, outcome: str | None = None, options: Options = DEFAULTS) -> None:
    """List what became of each connection of a campaign.

    Args:
        outcome: Only those that have ended so, such as consented, kept, stopped or gone.
    """
    with options.client() as client:
        show_rows(client.campaign_connections(campaign_id, outcome=outcome), _CONNECTIONS, options.output)


@campaigns.command(name="report")
def campaign_report(campaign_id: str, /, *, out: Path | None = None, options: Options = DEFAULTS) -> None:
    """Print the signed report of a campaign that is done. `evergrant incident verify` checks it.

    Args:
        out: A new file for it.
    """
    report(campaign_id, out=out, options=options)


def _seconds(number: float | None) -> timedelta | None:
    return None if number is None else timedelta(seconds=number)
