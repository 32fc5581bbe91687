"""An admin's calls for agents: apps with a sponsor, a purpose and an end."""

from dataclasses import dataclass
from datetime import datetime

from evergrant.calls.call import Call, Page, object_parser, page_parser, path_of, post, without_none


@dataclass(frozen=True, slots=True)
class Agent:
    """An app that is an agent. `sponsor` answers for it: `app:<name>` or `person:<id>`.

    `active` false: its requests are refused, because it or its sponsor is disabled, or its time is over.
    """

    id: str
    name: str
    sponsor: str
    purpose: str
    ends_at: datetime
    disabled: bool
    active: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class AgentStop:
    """A stop of an agent, with counts of what has been ended so far. `finished_at` None: there is more.

    `connections_kept`: connections that other apps use too.
    """

    id: str
    agent: str
    reason: str
    by: str
    revoke_connections: bool
    created_at: datetime
    approvals_closed: int
    connections_revoked: int
    connections_kept: int
    finished_at: datetime | None
    delegations_ended: int = 0


_AGENT = object_parser("agent", Agent)
_STOP = object_parser("stop", AgentStop)


def agents() -> Call[Page[Agent]]:
    """The agents of the tenant."""
    return Call("GET", path_of("agents"), page_parser("agent", Agent))


def agent(name: str) -> Call[Agent]:
    """One agent of the tenant."""
    return Call("GET", path_of("agents", name), _AGENT)


def put_agent(name: str, *, purpose: str, ends_at: datetime, sponsor: str | None = None) -> Call[Agent]:
    """Make an app an agent, created if there is none, or give an agent another sponsor, purpose or end.

    `sponsor`: `app:<name>` or `person:<id>`; by default who calls. From `ends_at` on the agent gets nothing.
    """
    body = {"purpose": purpose, "ends_at": ends_at.isoformat(), **without_none(sponsor=sponsor)}
    return Call("PUT", path_of("agents", name), _AGENT, body=body)


def stop_agent(name: str, *, reason: str, revoke_connections: bool = False) -> Call[AgentStop]:
    """Stop an agent: from the answer on its requests are refused. A worker then ends what it has left.

    `revoke_connections`: revoke for good those whose tokens no other app has leased.
    """
    body = {"reason": reason, "revoke_connections": revoke_connections}
    return post(path_of("agents", name, "stop"), _STOP, body)


def agent_stop(name: str) -> Call[AgentStop]:
    """The last stop of an agent, and how far it has come."""
    return Call("GET", path_of("agents", name, "stop"), _STOP)
