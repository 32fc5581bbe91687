"""An incident: which connections it is about, how far it has come, and the lines of its report. Pure.

One workflow for all kinds. Of a breach the connections are stopped, revoked at their providers and shredded;
after a leak of Evergrant's own keys they get new keys, and new tokens where the provider replaces them. When
a person leaves, theirs are stopped at once and end as of a breach, after a grace in which they can be put
back. A campaign has subjects consent to another client (`core.connections.campaigns`).
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, Self, TypeVar

from pydantic import Field

from evergrant_server.core.connections.connection import RevocationOutcome
from evergrant_server.core.ids import AppId, ConnectionId, IncidentId, TenantRow

IdT = TypeVar("IdT", bound=str)
REPORT_FORMAT = "evergrant-incident/v1"
NO_DIGEST = bytes(32).hex()
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 60.0


class IncidentKind(StrEnum):
    BREACH = "breach"  # tokens may be in an attacker's hands: stop, revoke, shred
    LEAK = "leak"  # keys of Evergrant may be: new keys, new secrets, new grants
    LEAVER = "leaver"  # a person leaves: stop, after a grace revoke and shred
    CAMPAIGN = "campaign"  # an integration has another client: subjects consent again, wave by wave


class IncidentState(StrEnum):
    HOLDING = "holding"  # of a leaver: stopped, and can be put back; of a campaign: before its first wave
    SELECTING = "selecting"  # its connections are listed; of a breach each is stopped as it is listed
    ROTATING = "rotating"  # of a leak: the tenant's own keys are replaced
    WORKING = "working"  # connection by connection, the most recently used first
    CLEANING = "cleaning"  # of a leak: older keys of connections are destroyed
    REPORTING = "reporting"
    DONE = "done"


_STATES = {
    IncidentKind.BREACH: (
        IncidentState.SELECTING,
        IncidentState.WORKING,
        IncidentState.REPORTING,
        IncidentState.DONE,
    ),
    IncidentKind.LEAK: (
        IncidentState.SELECTING,
        IncidentState.ROTATING,
        IncidentState.WORKING,
        IncidentState.CLEANING,
        IncidentState.REPORTING,
        IncidentState.DONE,
    ),
    IncidentKind.CAMPAIGN: (
        IncidentState.SELECTING,
        IncidentState.HOLDING,
        IncidentState.WORKING,
        IncidentState.REPORTING,
        IncidentState.DONE,
    ),
    IncidentKind.LEAVER: (
        IncidentState.HOLDING,
        IncidentState.SELECTING,
        IncidentState.WORKING,
        IncidentState.REPORTING,
        IncidentState.DONE,
    ),
}


class ItemStep(StrEnum):
    """How far one connection of an incident is."""

    LISTED = "listed"  # of a breach: stopped, no token is leased
    KEYED = "keyed"  # of a leak: its keys are new
    TOLD = "told"  # its workflow is told to revoke, or to refresh; of a campaign: its subject is asked
    ENDED = "ended"


class ItemOutcome(StrEnum):
    """What a report says of one connection."""

    CONFIRMED = "confirmed"  # the provider has confirmed that its tokens are revoked
    NOTHING_HELD = "nothing_held"  # it held no token
    NOT_SUPPORTED = "not_supported"  # the provider revokes no token, or no refresh token
    UNKNOWN = "unknown"  # a token may live on: the provider hasn't answered, or an answer was lost
    RENEWED = "renewed"  # the provider has replaced its tokens
    RECONNECT = "reconnect"  # its subject has to consent again
    GONE = "gone"  # it had ended, or ends: there is nothing to renew
    HANDED_OVER = "handed_over"  # of a leaver: another subject has it now
    RESTORED = "restored"  # of a leaver: it was put back within the grace
    FAILED = "failed"  # its refresh has failed; a worker tries again
    ASKED = "asked"  # apps are told that its subject has to consent again
    WELL = "well"  # it needs no new consent
    LABELLED = "labelled"  # it has the label
    HELD = "held"  # its subject leaves: it is neither renamed nor asked about
    TAKEN = "taken"  # another connection of its subject has the label
    CONSENTED = "consented"  # of a campaign: its grant is the new client's
    KEPT = "kept"  # of a campaign: it goes on with the client of before
    STOPPED = "stopped"  # of a campaign: it waits for its subject's consent


_OF_REVOCATION = {
    RevocationOutcome.CONFIRMED: ItemOutcome.CONFIRMED,
    RevocationOutcome.UNKNOWN: ItemOutcome.UNKNOWN,
    RevocationOutcome.ACCESS_TOKEN_ONLY: ItemOutcome.NOT_SUPPORTED,
    RevocationOutcome.NOT_SUPPORTED: ItemOutcome.NOT_SUPPORTED,
    RevocationOutcome.NOTHING_HELD: ItemOutcome.NOTHING_HELD,
}


def outcome_of_revocation(revocation: str | None) -> ItemOutcome:
    """The outcome of a connection that has ended; one without a revocation never held a token."""
    if revocation is None:
        return ItemOutcome.NOTHING_HELD
    return _OF_REVOCATION[RevocationOutcome(revocation)]


class ConnectionsOrder(TenantRow, Generic[IdT]):
    """What is done with many connections, one after another, and how far it has come.

    `waits_until`: then it is said how far the connections are. `after` is where the walk of the state goes
    on, `idle` how many looks in a row have changed nothing.
    """

    id: IdT
    reason: str
    by: str
    state: IncidentState = IncidentState.SELECTING
    paused: bool = False
    created_at: datetime
    waits_until: datetime
    selected: int = 0
    ended: int = 0
    outcomes: dict[str, int] = Field(default_factory=dict)
    after: str = ""
    idle: int = 0
    finished_at: datetime | None = None

    @property
    def states(self) -> tuple[IncidentState, ...]:
        """The states of an order of this kind, in their order."""
        return (IncidentState.SELECTING, IncidentState.WORKING, IncidentState.DONE)

    def wait_s(self, now: datetime) -> float:
        """Seconds until the next look; 0: there is more to do at once."""
        return wait_before_look(self.idle - 1) if self.idle else 0.0

    def following(self) -> Self:
        """The next state, whose walk begins anew."""
        state = self.states[self.states.index(self.state) + 1]
        return self.__replace__(state=state, after="", idle=0)

    def with_ended(self, outcomes: Iterable[ItemOutcome]) -> Self:
        """With these connections, whose outcomes are known now."""
        counts, ended = dict(self.outcomes), self.ended
        for outcome in outcomes:
            counts[outcome] = counts.get(outcome, 0) + 1
            ended += 1
        return self.__replace__(outcomes=counts, ended=ended)


class Incident(ConnectionsOrder[IncidentId]):
    """One order about a breach, a leak or a leaver.

    Its connections: those of `integration`, those whose tokens `app` has leased, those whose tokens were
    leased from `since` on, before `until`, or what all of these say; without any, the tenant's.

    `lines` and `digest` are of the report as far as it is written; `header`, `summary` and `note` are its
    first line, its last but one, and its last, with the signature over all before.

    Of a leaver: `person` is a keyed hash of who it is, until `held_until` the connections can be put back,
    and `beside` counts what has ended with them: sessions, delegations, token families, agents. Of a
    campaign: `held_until` is when its first wave begins, until then it can be undone.
    """

    kind: IncidentKind
    integration: str | None = None
    app: str | None = None
    app_id: AppId | None = None
    since: datetime | None = None
    until: datetime | None = None
    lines: int = 0
    digest: str = NO_DIGEST
    header: str = ""
    summary: str = ""
    note: str = ""
    person: str | None = None
    held_until: datetime | None = None
    undone_at: datetime | None = None
    beside: dict[str, int] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        """What a person repeats to confirm the order."""
        return self.integration or self.app or self.tenant

    @property
    def by_time(self) -> bool:
        """Whether it is about the leases of a time."""
        return self.since is not None or self.until is not None

    @property
    def states(self) -> tuple[IncidentState, ...]:
        return _STATES[self.kind]

    def wait_s(self, now: datetime) -> float:
        if self.state is IncidentState.HOLDING and self.held_until is not None:
            return max((self.held_until - now).total_seconds(), 0.0)
        return super().wait_s(now)

    def undone(self, outcomes: Iterable[ItemOutcome], at: datetime) -> "Incident":
        """What was held is put back: its report is next."""
        return self.with_ended(outcomes).__replace__(
            state=IncidentState.REPORTING, undone_at=at, after="", idle=0
        )

    def with_lines(self, lines: Iterable[str]) -> "Incident":
        """With these lines at the end of the report."""
        digest, count = bytes.fromhex(self.digest), self.lines
        for line in lines:
            digest, count = hashlib.sha256(digest + line.encode()).digest(), count + 1
        return self.__replace__(digest=digest.hex(), lines=count)

    @property
    def scope(self) -> dict[str, str]:
        """Which connections, for records and the report."""
        moments = {"since": self.since, "until": self.until}
        named = {"integration": self.integration, "app": self.app, "person": self.person}
        named |= {name: at.isoformat() for name, at in moments.items() if at is not None}
        return {name: value for name, value in named.items() if value is not None}


class IncidentItem(TenantRow):
    """One connection of an order.

    `used_at`: the last lease; `generation`: of its grant when it was listed, or told.
    """

    incident_id: IncidentId
    connection_id: ConnectionId
    integration: str
    provider: str
    used_at: datetime | None = None
    step: ItemStep = ItemStep.LISTED
    outcome: ItemOutcome | None = None
    generation: int = 0
    told_at: datetime | None = None
    line: str = ""
    matched: str | None = None  # of a leaver: why it is theirs, a `MatchedBy`
    leases: int = 0  # of a campaign, like what follows: its leases of a month, when it was listed
    wave: int = 0
    reminders: int = 0


def wait_before_look(idle: int) -> float:
    """Seconds before the next look, after this many in a row that have changed nothing."""
    return min(_FIRST_WAIT_S * 2 ** min(idle, 10), _LONGEST_WAIT_S)


def report_line(members: Mapping[str, Any]) -> str:
    """One line of a report: JSON without line ends, kept and signed as it is."""
    return json.dumps(members, separators=(",", ":"), ensure_ascii=True)


def note_text(incident: Incident) -> str:
    """What is signed: of which incident the report is, and the digest of all its lines.

    The digest of a line is SHA-256 over the digest before it, at first 32 zero bytes, and the line's bytes.
    """
    assert incident.finished_at is not None
    digest = base64.b64encode(bytes.fromhex(incident.digest)).decode()
    at = incident.finished_at.isoformat()
    parts = (REPORT_FORMAT, incident.tenant, incident.id, str(incident.lines), digest, at)
    return "".join(f"{part}\n" for part in parts)
