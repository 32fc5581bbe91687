"""The last steps: the timeline in the workflow's history, and the search for secrets."""

from rich.table import Table
from temporalio.client import Client

from examples.demo.claims import Claim, expect
from examples.demo.histories import TimelineEntry, search, timeline, until_closed
from examples.demo.story import Story

_STEPS = ("begins", "consent_granted", "exchange_code", "refresh_grant", "revoke_grant", "ends")


async def show_history(story: Story, client: Client) -> None:
    """Print the connection's timeline, and check that no step is missing."""
    await until_closed(client, story.workflow_id)  # its row says that it is revoked before the run has ended
    entries = await timeline(client, story.workflow_id, story.admin.decode)
    story.console.print(_table(entries))
    text = " ".join(entry.what for entry in entries)
    missing = [step for step in _STEPS if step not in text]
    expect(not missing, f"the history lacks: {', '.join(missing)}")
    attempts = [entry for entry in entries if entry.what.strip() == "again"]
    expect(bool(attempts), "the history lacks the attempt after the worker was killed")
    story.claims.observed(
        Claim.HISTORY, f"{len(entries)} entries, including the killed worker: {attempts[0].detail}"
    )


def _table(entries: list[TimelineEntry]) -> Table:
    table = Table(title="The connection's workflow history", title_justify="left", box=None)
    table.add_column("after", justify="right", style="dim")
    table.add_column("what")
    table.add_column("", style="dim")
    for entry in entries:
        seconds = (entry.at - entries[0].at).total_seconds()
        table.add_row(f"{seconds:.1f} s", entry.what, entry.detail)
    return table


async def look_for_secrets(story: Story, client: Client, pipeline_id: str) -> None:
    """Search every history for the secrets of this run, and for an id that must be found."""
    workflows = (story.workflow_id, pipeline_id)
    control = await search(client, workflows, [story.connection_id], story.admin.decode)
    expect(set(workflows) <= set(control.found_in), "the search can't even find the connection's id")
    secrets = {*story.secrets, *await story.server.secrets(), story.app_key, story.platform.admin_key}
    result = await search(client, workflows, secrets, story.admin.decode)
    expect(not result.found_in, f"found a secret in the history of {', '.join(result.found_in)}")
    story.claims.observed(
        Claim.NO_SECRET,
        f"{len(secrets)} secrets searched in {result.events} events of {len(result.workflows)} workflows",
    )
