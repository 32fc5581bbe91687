"""The last steps: what Temporal's histories tell, and what they must not hold."""

from rich.table import Table
from temporalio.client import Client

from examples.demo.claims import Claim, expect
from examples.demo.histories import TimelineEntry, search, timeline
from examples.demo.story import Story

_CHAPTERS = ("begins", "consent_granted", "exchange_code", "refresh_grant", "revoke_grant", "ends")


async def show_history(story: Story, client: Client) -> None:
    """Print the connection's timeline, and check that no chapter of its life is missing."""
    moments = await timeline(client, story.workflow_id)
    story.console.print(_table(moments))
    told = " ".join(moment.what for moment in moments)
    missing = [chapter for chapter in _CHAPTERS if chapter not in told]
    expect(not missing, f"the history doesn't tell of: {', '.join(missing)}")
    attempts = [moment for moment in moments if moment.what.strip() == "again"]
    expect(bool(attempts), "the history doesn't tell of the worker that was killed")
    story.claims.observed(
        Claim.HISTORY, f"{len(moments)} moments, the killed worker too: {attempts[0].detail}"
    )


def _table(moments: list[TimelineEntry]) -> Table:
    table = Table(title="The connection's life, from its workflow history", title_justify="left", box=None)
    table.add_column("after", justify="right", style="dim")
    table.add_column("what")
    table.add_column("", style="dim")
    for moment in moments:
        seconds = (moment.at - moments[0].at).total_seconds()
        table.add_row(f"{seconds:.1f} s", moment.what, moment.detail)
    return table


async def look_for_secrets(story: Story, client: Client, pipeline_id: str) -> None:
    """Search every history for whatever was secret in this run; a name that must be there is found."""
    workflows = (story.workflow_id, pipeline_id)
    known = await search(client, workflows, [story.connection_id])
    expect(set(workflows) <= set(known.found_in), "the search can't even find the connection's id")
    secrets = {*story.secrets, *await story.server.secrets(), story.app_key, story.platform.admin_key}
    looked = await search(client, workflows, secrets)
    expect(not looked.found_in, f"found a secret in the history of {', '.join(looked.found_in)}")
    story.claims.observed(
        Claim.NO_SECRET,
        f"{len(secrets)} secrets looked for in {looked.events} events of {len(looked.workflows)} workflows",
    )
