"""What requests and responses about campaigns hold."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import Field, model_validator

from evergrant_server.api.campaigns.orders import PlannedWave
from evergrant_server.api.http.models import Body, Slug, Text, View
from evergrant_server.core.connections.campaigns import MOST_REMINDERS, CampaignEnd
from evergrant_server.core.connections.incidents import IncidentState, ItemOutcome, ItemStep
from evergrant_server.store.connections.campaigns import WaveCount

DAY_S = 86_400.0
LONGEST_S = 366 * DAY_S
Seconds = Annotated[float, Field(ge=0, le=LONGEST_S)]
WaveSize = Annotated[int, Field(ge=1, le=10_000)]


class CampaignBody(Body):
    """Whose subjects consent to which client, and how. `successor` is another integration, with the new
    client and without connections, at the same provider: it gets the name of `integration` at once.

    A wave has `wave_size` connections, the least used first; the first begins after `first_wave` seconds, in
    which the campaign can be undone, each other one `every` seconds after the one before. `remind`: as many
    seconds after it was asked a subject is asked again. After `lasts` seconds it ends: connections whose
    subjects haven't consented go on with the client of before (`keep`), or need them (`stop`).

    `confirm` repeats the name of `integration`. `reason` stays in the audit log and in the report: name a
    ticket there, and no person.
    """

    integration: Slug
    successor: Slug
    reason: Text
    confirm: str | None = None
    wave_size: WaveSize = 100
    every: Annotated[float, Field(ge=1, le=LONGEST_S)] = DAY_S
    first_wave: Seconds = 3600.0
    remind: Annotated[tuple[Seconds, ...], Field(max_length=MOST_REMINDERS)] = (3 * DAY_S, 7 * DAY_S)
    lasts: Annotated[float, Field(ge=1, le=LONGEST_S)] = 30 * DAY_S
    end: CampaignEnd = CampaignEnd.KEEP

    @model_validator(mode="after")
    def _lasts_longer(self) -> Self:
        if self.lasts <= self.first_wave:
            raise ValueError("lasts has to be longer than first_wave")
        return self


class CampaignEndBody(Body):
    """What becomes of connections whose subjects haven't consented; null: as the campaign says."""

    end: CampaignEnd | None = None


class PlannedWaveView(View):
    """One wave. `leases`: of its connections in the last month."""

    begins_at: datetime
    connections: int
    subjects: int
    leases: int

    @classmethod
    def of_wave(cls, wave: PlannedWave) -> "PlannedWaveView":
        return cls.model_validate(vars(wave))


class CampaignPlanView(View):
    """What a campaign would do. `complete` false: more connections follow than the waves have. `listening`:
    webhooks that hear whose subject is asked; without one no app makes a link by itself."""

    integration: str
    successor: str
    connections: int
    complete: bool
    waves: list[PlannedWaveView]
    listening: int
    confirm: str


class CampaignView(View):
    """How far a campaign is. `older`, `newer`: the names that its integrations have now, null for one that
    was deleted. `next_wave_at` null: no more begins. `declined` asked subjects have denied, or tried in vain.
    `outcomes`: how many connections ended how: `consented`, `kept`, `stopped`, `gone`, `not_supported`,
    `nothing_held`."""

    id: str
    integration: str
    older: str | None
    newer: str | None
    reason: str
    by: str
    state: IncidentState
    paused: bool
    created_at: datetime
    first_wave_at: datetime
    ends_at: datetime
    end: CampaignEnd
    wave_size: int
    every: float
    remind: list[float]
    wave: int
    next_wave_at: datetime | None
    selected: int
    asked: int
    reminded: int
    consented: int
    declined: int
    ended: int
    outcomes: dict[str, int]
    undone_at: datetime | None
    finished_at: datetime | None


class WaveView(View):
    """A wave that has begun. `leases`: of its connections in the month before the campaign."""

    wave: int
    connections: int
    consented: int
    leases: int

    @classmethod
    def of_count(cls, count: WaveCount) -> "WaveView":
        return cls.model_validate(count._asdict())


class CampaignDetailView(CampaignView):
    """With its waves."""

    waves: list[WaveView]


class CampaignConnectionView(View):
    """One connection of a campaign. `subject` and `label` are null once it is erased. `wave` 0: it wasn't
    asked yet."""

    connection_id: str
    subject: str | None
    label: str | None
    integration: str
    wave: int
    leases: int
    last_leased_at: datetime | None
    asked_at: datetime | None
    reminders: int
    step: ItemStep
    outcome: ItemOutcome | None
    state: str
