"""`evergrant agents`: apps with a sponsor, a purpose and an end."""

import sys
import time
from datetime import UTC, datetime, timedelta

from cyclopts import App

from evergrant.cli.apps import Days
from evergrant.cli.output import DEFAULTS, Options, row_of
from evergrant.cli.show.tables import show_one, show_rows
from evergrant.retries import Deadline

_WAIT = timedelta(seconds=20)  # for a worker; it goes on without this command
_EVERY_S = 0.5
_AGENTS = ("name", "active", "sponsor", "purpose", "ends_at", "id")

agents = App(name="agents", help="Apps that act for people: who answers for each, and until when.")


@agents.command(name=("ls", "list"))
def list_agents(*, options: Options = DEFAULTS) -> None:
    """List the agents of the tenant."""
    with options.client() as client:
        show_rows((row_of(it) for it in client.agents()), _AGENTS, options.output)


@agents.command(name="get")
def get_agent(agent: str, /, *, options: Options = DEFAULTS) -> None:
    """Show one agent."""
    with options.client() as client:
        show_one(row_of(client.agent(agent)), options.output)


@agents.command(name="put")
def put_agent(
    agent: str, /, *, purpose: str, days: Days, sponsor: str | None = None, options: Options = DEFAULTS
) -> None:
    """Make an app an agent, or give one another sponsor, purpose or end. A missing app is created.

    Args:
        purpose: What it is for; people read it.
        days: Days from now until it gets nothing more.
        sponsor: Who answers for it: app:NAME, or person:ID. By default whose key or login this is.
    """
    ends_at = datetime.now(UTC) + timedelta(days=days)
    with options.client() as client:
        made = client.put_agent(agent, purpose=purpose, ends_at=ends_at, sponsor=sponsor)
    show_one(row_of(made), options.output)


@agents.command(name="stop")
def stop_agent(
    agent: str,
    /,
    *,
    reason: str = "stopped",
    revoke_connections: bool = False,
    options: Options = DEFAULTS,
) -> None:
    """Stop an agent at once, and wait for the counts of what it had left.

    Args:
        reason: For the audit log.
        revoke_connections: Revoke for good the connections whose tokens no other app has leased.
    """
    with options.client() as client:
        stop = client.stop_agent(agent, reason=reason, revoke_connections=revoke_connections)
        print(f"evergrant: {agent} gets nothing any more", file=sys.stderr)
        deadline = Deadline(_WAIT)
        while stop.finished_at is None and deadline.seconds_left() > 0:
            time.sleep(_EVERY_S)
            stop = client.agent_stop(agent)
    show_one(row_of(stop), options.output)
