"""What ends with a person who leaves, beside connections: sessions, delegations, token families, agents.

Each is ended as an admin's own command would end it, with its record, in the transaction of the caller.
"""

from datetime import datetime
from typing import NamedTuple

from evergrant_server.access.transactions import record
from evergrant_server.core.access import App
from evergrant_server.core.agents.stops import AgentStop
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AgentStopId, DelegationId, Tenant, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.oauth.authorizations import FamilyEnd, TokenFamily
from evergrant_server.core.outbox import agent_stop_message
from evergrant_server.core.people.roles import Person, person_id
from evergrant_server.store import Transaction

_MOST = 500  # of each kind: more than a person has
_ALARMS = (FamilyEnd.CODE_REPLAYED, FamilyEnd.TOKEN_REPLAYED)


class PersonsNames(NamedTuple):
    """A person of the tenant's issuer, where that is known, and the subjects that are theirs."""

    tenant: Tenant
    person: Person | None
    subjects: set[str]


class Ending(NamedTuple):
    """For whom it is ended, when, and why."""

    context: RequestContext
    at: datetime
    reason: str


async def end_family(
    tx: Transaction, family: TokenFamily, end: FamilyEnd, context: RequestContext, at: datetime
) -> int:
    """End the family with its access tokens, whose next use is refused in every process; returns how many.

    The app's revision moves: its callers are read anew, and calls that are being decided are decided again.
    """
    ended = family.__replace__(ended_at=at, end=end)
    valid = await tx.oauth_tokens.count_valid(family.tenant, family.id, at)
    await tx.token_families.replace(ended, expected=family.revision)
    await tx.access.bump(family.tenant, family.app_id)
    action = AuditAction.TOKEN_FAMILY_REPLAYED if end in _ALARMS else AuditAction.TOKEN_FAMILY_ENDED
    detail = {**family.named, "app": family.app_id, "reason": end.value, "access_tokens": valid}
    await record(tx, family.tenant, action, family.id, context, at, **detail)
    return valid


async def end_sessions(tx: Transaction, names: PersonsNames, ending: Ending) -> int:
    """End the person's sessions, to administer and to let OAuth clients act; returns how many."""
    ended = 0
    if names.person is not None:
        for session in await tx.persons_rows.sessions(names.tenant, names.person, ending.at):
            if await tx.person_sessions.end(names.tenant, session.id, ending.at) is not None:
                ended += 1
                await _session_ended(tx, names, session.id, ending)
    live = await tx.persons_rows.subject_sessions(names.tenant, names.subjects, names.person, ending.at)
    for session in live:
        over = session.__replace__(ended_at=ending.at)
        await tx.subject_sessions.replace(over, expected=session.revision)
        await _session_ended(tx, names, session.id, ending)
    return ended + len(live)


async def _session_ended(tx: Transaction, names: PersonsNames, id: str, ending: Ending) -> None:
    named = {} if names.person is None else {"person": person_id(names.tenant, names.person)}
    action, detail = AuditAction.SESSION_ENDED, {**named, "reason": ending.reason}
    await record(tx, names.tenant, action, id, ending.context, ending.at, **detail)


async def end_families(tx: Transaction, names: PersonsNames, ending: Ending) -> int:
    """End what the person has authorized gateway clients for, and what is under way; returns how many.

    What is under way first: a client that is getting its first tokens is waited for, and its family is seen.
    """
    await tx.persons_rows.forget_authorizations(names.tenant, names.subjects)
    ended = 0
    for subject in sorted(names.subjects):
        for family in await tx.token_families.live(names.tenant, _MOST, subject=subject):
            await end_family(tx, family, FamilyEnd.ENDED, ending.context, ending.at)
            ended += 1
    return ended


async def end_delegations(tx: Transaction, names: PersonsNames, ending: Ending) -> int:
    """End the sessions in which apps act for the person, with all that was delegated; returns how many."""
    ended = 0
    for id in await tx.persons_rows.roots_of(names.tenant, names.subjects, ending.at, _MOST):
        delegation = await tx.delegations.get(names.tenant, DelegationId(id))
        if delegation is None or delegation.stopped_at is not None:
            continue
        below = await tx.delegations.count_live_under(delegation, ending.at)
        stopped = delegation.stopped(ending.context.by, ending.reason, ending.at)
        await tx.delegations.replace(stopped, expected=delegation.revision)
        detail = {"reason": ending.reason, "session": delegation.root_id, "delegations_ended": below}
        place = (tx, names.tenant, AuditAction.DELEGATION_STOPPED, delegation.id, ending.context, ending.at)
        await record(*place, subject=delegation.subject, **detail)
        ended += below
    return ended


async def agents_of(tx: Transaction, names: PersonsNames) -> list[App]:
    """The agents that the person answers for, and that aren't disabled."""
    if names.person is None:
        return []
    agents = await tx.agents.of_person(names.tenant, person_id(names.tenant, names.person), _MOST)
    return [agent for agent in agents if not agent.disabled]


async def sponsor_named(tx: Transaction, tenant: Tenant, name: str | None) -> App | None:
    """The app that is to answer for a leaver's agents. Raises Failure NOT_FOUND for one that can't."""
    if name is None:
        return None
    app = await tx.access.app_by_name(tenant, name)
    if app is None or app.is_agent or app.disabled:
        raise Failure(ErrorCode.NOT_FOUND, "The new sponsor is no app that can answer for agents.")
    return app


async def end_agents(tx: Transaction, names: PersonsNames, sponsor: App | None, ending: Ending) -> int:
    """Give the person's agents this sponsor, or stop them; returns how many."""
    agents = await agents_of(tx, names)
    for agent in agents:
        if sponsor is None or sponsor.id == agent.id:
            await _stop_agent(tx, agent, ending)
            continue
        moved = agent.__replace__(sponsor=f"app:{sponsor.name}", sponsor_app=sponsor.id)
        await tx.access.put_app(moved, expected=agent.revision)
        ends_at = None if agent.ends_at is None else agent.ends_at.isoformat()
        detail = {"sponsor": moved.sponsor, "purpose": agent.purpose, "ends_at": ends_at}
        place = (tx, names.tenant, AuditAction.AGENT_PUT, agent.id, ending.context, ending.at)
        await record(*place, app=agent.name, reason=ending.reason, **detail)
    return len(agents)


async def _stop_agent(tx: Transaction, agent: App, ending: Ending) -> None:
    await tx.access.put_app(agent.__replace__(disabled=True), expected=agent.revision)
    stop = AgentStop(
        tenant=agent.tenant,
        id=AgentStopId(new_id("stp")),
        app_id=agent.id,
        reason=ending.reason,
        by=ending.context.by,
        revoke_connections=False,
        created_at=ending.at,
    )
    await tx.agent_stops.add(stop)
    detail = {"agent": agent.name, "stop_id": stop.id, "reason": ending.reason, "revoke_connections": False}
    place = (tx, agent.tenant, AuditAction.AGENT_STOPPED, agent.id, ending.context, ending.at)
    await record(*place, **detail)
    await tx.outbox.add(agent_stop_message(stop, ending.context, ending.at))
