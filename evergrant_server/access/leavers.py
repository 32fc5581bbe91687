"""What API, console, SCIM and events write when a person leaves: the plan, the order, and its undoing.

The order holds the person's connections and ends what else is theirs in one transaction: from its commit on
no token of them leaves. A worker revokes them once the grace is over: see `activities.incidents`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from evergrant_server.access import person_ends
from evergrant_server.access.person_ends import Ending, PersonsNames
from evergrant_server.access.transactions import record
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.incidents import (
    Incident,
    IncidentItem,
    IncidentKind,
    IncidentState,
    ItemOutcome,
    ItemStep,
)
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, IncidentId, Tenant, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.outbox import incident_message
from evergrant_server.core.people.leavers import (
    MOST_CONNECTIONS,
    Leaver,
    Match,
    MatchedBy,
    NamedPerson,
    OffboardingRule,
    matches_of,
)
from evergrant_server.core.people.roles import Person
from evergrant_server.problems import invalid_request
from evergrant_server.store import Transaction
from evergrant_server.store.connections.incidents import PersonsConnection

_TOO_MANY = (
    f"More than {MOST_CONNECTIONS} connections have this subject: that is no person's. Name them by an "
    "incident of their integration or app: evergrant incident plan breach."
)


@dataclass(frozen=True)
class LeaverOrder:
    """Who leaves, on whose order. `hand_over`: connections that are the team's, and whose they become."""

    tenant: Tenant
    person: NamedPerson
    reason: str
    grace: timedelta
    wait: timedelta  # for providers, behind the grace
    sponsor: str | None
    context: RequestContext
    at: datetime
    rule: OffboardingRule | None = None
    hand_over: Mapping[str, str] = field(default_factory=dict[str, str])


class Fate(StrEnum):
    """What happens to a connection of the person."""

    STOP = "stop"
    HAND_OVER = "hand_over"


@dataclass(frozen=True)
class PlannedConnection:
    """One connection of the person. `to`: whose it becomes."""

    connection: PersonsConnection
    matched: MatchedBy
    fate: Fate
    to: str | None = None


@dataclass(frozen=True)
class LeaverPlan:
    """What an order would do. `permits` name one of the subjects: an admin decides what they become."""

    matches: tuple[Match, ...]
    connections: list[PlannedConnection]
    agents: list[str]
    permits: list[str]


def grace_of(rule: OffboardingRule | None, setting: timedelta, ordered: float | None = None) -> timedelta:
    """What the order says, else the tenant's rule, else the setting."""
    seconds = ordered if ordered is not None or rule is None else rule.grace_s
    return setting if seconds is None else timedelta(seconds=seconds)


async def plan(tx: Transaction, order: LeaverOrder) -> LeaverPlan:
    """What would happen. Changes nothing. Raises Failure INVALID_REQUEST, NOT_FOUND."""
    matches = await _matches(tx, order)
    await person_ends.sponsor_named(tx, order.tenant, order.sponsor)
    connections = await tx.incident_items.of_person(order.tenant, matches, MOST_CONNECTIONS + 1)
    if len(connections) > MOST_CONNECTIONS:
        raise invalid_request("subject", _TOO_MANY)
    planned = [await _planned(tx, order, matches, connection) for connection in connections]
    if strange := order.hand_over.keys() - {connection.id for connection in connections}:
        raise invalid_request("hand_over", f"{min(strange)} is no live connection of this person.")
    agents = await person_ends.agents_of(tx, _names(order, matches))
    named: list[str] = []
    for subject in sorted({match.subject for match in matches}):
        permits = await tx.personal_rows.permits_naming(order.tenant, subject)
        named += [f"{permit} of {app}" for app, permit in permits]
    return LeaverPlan(matches, planned, [agent.name for agent in agents], named)


async def _matches(tx: Transaction, order: LeaverOrder) -> tuple[Match, ...]:
    """The subjects that are the person's."""
    tenant = order.tenant
    logins = await tx.persons_rows.logins(tenant)
    clients = await tx.client_logins.to_replace(tenant)
    issuer = None if order.rule is None else order.rule.issuer
    return matches_of(order.person, issuer, [*logins, *([] if clients is None else [("", clients.login)])])


async def _planned(
    tx: Transaction, order: LeaverOrder, matches: tuple[Match, ...], connection: PersonsConnection
) -> PlannedConnection:
    """What happens to a connection. Raises Failure INVALID_REQUEST where the owner that the order names has
    one of these names; by the rule, the team's own one stays and the leaver's is stopped."""
    by = next(match.by for match in matches if match.covers(connection.integration, connection.subject))
    rule, ordered = order.rule, order.hand_over.get(connection.id)
    of_team = rule is not None and connection.label in rule.team_labels
    owner = ordered or (rule.team_owner if rule is not None and of_team else None)
    if owner is None or owner == connection.subject:
        return PlannedConnection(connection, by, Fate.STOP)
    names = (connection.integration, owner, connection.label)
    known = await tx.connections.by_names(order.tenant, *names)
    if known is None or known.state.is_final:
        return PlannedConnection(connection, by, Fate.HAND_OVER, owner)
    if ordered is not None:
        why = f"{owner} has a connection at {names[0]} with the label {names[2]} already"
        repair = "name another owner, or revoke one of the two first"
        raise invalid_request("hand_over", f"{connection.id}: {why}; {repair}.")
    return PlannedConnection(connection, by, Fate.STOP)


def _names(order: LeaverOrder, matches: tuple[Match, ...]) -> PersonsNames:
    known = order.person
    person = None
    if known.issuer is not None and known.sub is not None:
        person = Person(issuer=known.issuer, sub=known.sub)
    # what an app calls a subject at one integration alone is a person's there, and nowhere else
    subjects = {match.subject for match in matches if match.integration in (None, "")}
    return PersonsNames(order.tenant, person, subjects)


async def begin(tx: Transaction, order: LeaverOrder) -> Incident:
    """Hold the person's connections, and end what else is theirs. One offboarding of a person is under way at
    a time: a second order gets the first one. Raises Failure INVALID_REQUEST, NOT_FOUND."""
    await tx.leavers.lock(order.tenant)
    person = tx.ring.subject_hash(order.tenant, order.person.name)
    under_way = await tx.incidents.open_of_person(order.tenant, person)
    if under_way is not None:
        return under_way
    planned = await plan(tx, order)
    incident = _new(order, person, planned)
    ending = Ending(order.context, order.at, reason_of_leaver(incident.id))
    names = _names(order, planned.matches)
    sponsor = await person_ends.sponsor_named(tx, order.tenant, order.sponsor)
    beside = {
        "sessions": await person_ends.end_sessions(tx, names, ending),
        "token_families": await person_ends.end_families(tx, names, ending),
        "delegations": await person_ends.end_delegations(tx, names, ending),
        "agents": await person_ends.end_agents(tx, names, sponsor, ending),
    }
    handed = [each for each in planned.connections if each.fate is Fate.HAND_OVER]
    incident = incident.with_ended([ItemOutcome.HANDED_OVER] * len(handed)).__replace__(beside=beside)
    await tx.incidents.add(incident)
    await tx.leavers.add(_leaver(order, incident, planned))
    await _hold(tx, order, incident, planned)
    await tx.outbox.add(incident_message(incident, order.context, order.at))
    detail = {"reason": order.reason, "person": person, **summary_of(planned), "ended": beside}
    if incident.held_until is not None:
        detail["held_until"] = incident.held_until.isoformat()
    await _record(tx, order, AuditAction.OFFBOARDING_BEGUN, incident.id, **detail)
    return incident


async def record_plan(tx: Transaction, order: LeaverOrder) -> None:
    """Record what an order would do, where the tenant's rule says that nothing is begun by itself."""
    person = tx.ring.subject_hash(order.tenant, order.person.name)
    detail = {"reason": order.reason, "person": person, **summary_of(await plan(tx, order))}
    await _record(tx, order, AuditAction.OFFBOARDING_PLANNED, order.person.user_id or person, **detail)


def summary_of(planned: LeaverPlan) -> dict[str, object]:
    """The counts of a plan, for records: no subject is named."""
    fates = [each.fate for each in planned.connections]
    return {
        "connections": len(fates),
        "handed_over": fates.count(Fate.HAND_OVER),
        "matched_by": sorted({match.by.value for match in planned.matches}),
        "agents": planned.agents,
    }


def reason_of_leaver(id: IncidentId) -> str:
    """Why a connection is stopped, or something beside is ended."""
    return f"offboarding: {id}"


def _new(order: LeaverOrder, person: str, planned: LeaverPlan) -> Incident:
    stops = any(each.fate is Fate.STOP for each in planned.connections)
    until = order.at + (order.grace if stops else timedelta(0))  # nothing waits where nothing is held
    return Incident(
        tenant=order.tenant,
        id=IncidentId(new_id("inc")),
        kind=IncidentKind.LEAVER,
        reason=order.reason,
        by=order.context.by,
        state=IncidentState.HOLDING,
        created_at=order.at,
        waits_until=until + order.wait,
        selected=len(planned.connections),
        person=person,
        held_until=until,
    )


def _leaver(order: LeaverOrder, incident: Incident, planned: LeaverPlan) -> Leaver:
    subject = planned.matches[0].subject if planned.matches else order.person.name
    return Leaver(
        tenant=order.tenant,
        id=incident.id,
        subject=subject,
        issuer=order.person.issuer,
        sub=order.person.sub,
        user_id=order.person.user_id,
        matches=tuple(match for match in planned.matches if match.integration != ""),
    )


async def _hold(tx: Transaction, order: LeaverOrder, incident: Incident, planned: LeaverPlan) -> None:
    """List the connections, and stop or hand over each: no token of a stopped one is leased once this is
    committed."""
    uses = await tx.incident_items.last_uses(
        order.tenant, [each.connection.id for each in planned.connections]
    )
    for each in planned.connections:
        connection = await tx.revocable_rows.connection(order.tenant, each.connection.id, order.at)
        assert connection is not None  # it was read in this transaction
        moved = each.fate is Fate.HAND_OVER
        item = IncidentItem(
            tenant=order.tenant,
            incident_id=incident.id,
            connection_id=each.connection.id,
            integration=each.connection.integration,
            provider=each.connection.provider,
            generation=each.connection.generation,
            used_at=uses.get(each.connection.id),
            step=ItemStep.ENDED if moved else ItemStep.LISTED,
            outcome=ItemOutcome.HANDED_OVER if moved else None,
            matched=each.matched.value,
        )
        await tx.incident_items.add(item)
        if each.to is not None:
            await _hand_over(tx, order, incident, connection, each.to)
        elif not connection.has_ended and connection.held_by is None:
            held = connection.__replace__(held_by=incident.id)
            await tx.connections.replace(held, expected=connection.revision)
            detail = {"incident": incident.id, "matched_by": each.matched.value}
            await _record(tx, order, AuditAction.CONNECTION_HELD, connection.id, **detail)


async def _hand_over(
    tx: Transaction, order: LeaverOrder, incident: Incident, connection: Connection, to: str
) -> None:
    """Let another subject have the connection. Its grant goes on, until that one consents."""
    moved = connection.handed_over(to, order.at)
    await tx.connections.replace_names(moved, expected=connection.revision)
    detail = {"incident": incident.id, "to": tx.ring.subject_hash(order.tenant, to)}
    await _record(tx, order, AuditAction.CONNECTION_HANDED_OVER, connection.id, **detail)


async def undo(tx: Transaction, tenant: Tenant, id: str, context: RequestContext, now: datetime) -> Incident:
    """Put the connections back, within the grace. What else was ended stays so: people log in again. Raises
    Failure NOT_FOUND, INVALID_REQUEST once it is too late."""
    incident = await tx.incidents.get(tenant, IncidentId(id))
    if incident is None or incident.kind is not IncidentKind.LEAVER:
        raise Failure(ErrorCode.NOT_FOUND, "There is no such offboarding. See: evergrant offboard ls")
    if incident.state is not IncidentState.HOLDING:
        why = "The grace is over: its connections are revoked, and have to be connected again."
        raise invalid_request("offboarding_id", why if incident.undone_at is None else "It was undone.")
    listed = await tx.incident_items.next_at(incident, ItemStep.LISTED, MOST_CONNECTIONS)
    outcomes: list[ItemOutcome] = []
    for item in listed:
        outcome = await _put_back(tx, incident, item.connection_id, context, now)
        ended = item.__replace__(step=ItemStep.ENDED, outcome=outcome)
        await tx.incident_items.replace(ended, expected=item.revision)
        outcomes.append(outcome)
    undone = incident.undone(outcomes, now)
    undone = await tx.incidents.replace(undone, expected=incident.revision)
    place = (tx, tenant, AuditAction.OFFBOARDING_UNDONE, incident.id, context, now)
    await record(*place, person=incident.person, restored=outcomes.count(ItemOutcome.RESTORED))
    await tx.outbox.add(incident_message(undone, context, now))
    return undone


async def _put_back(
    tx: Transaction, incident: Incident, id: ConnectionId, context: RequestContext, now: datetime
) -> ItemOutcome:
    connection = await tx.revocable_rows.connection(incident.tenant, id, now)
    if connection is None or connection.held_by != incident.id or connection.has_ended:
        return ItemOutcome.GONE
    await tx.connections.replace(connection.__replace__(held_by=None), expected=connection.revision)
    place = (tx, incident.tenant, AuditAction.CONNECTION_RESTORED, id, context, now)
    await record(*place, incident=incident.id)
    return ItemOutcome.RESTORED


async def _record(
    tx: Transaction, order: LeaverOrder, action: AuditAction, id: str, **detail: object
) -> None:
    await record(tx, order.tenant, action, id, order.context, order.at, **detail)
