"""The next part of an incident: the page, the wave or the lines that its row says.

The row is written in the transaction of each page: a worker that is killed anywhere is followed by another,
which goes on there. A person pauses it between two pages.
"""

from datetime import timedelta

from temporalio import activity

from activities.incidents.campaigns import CampaignWork
from activities.incidents.renewing import Leak
from activities.incidents.report import ReportWriter
from activities.incidents.revoking import Breach
from activities.incidents.rows import Rows, Waves, for_a_while
from activities.incidents.selecting import Selection
from activities.support.temporal import heartbeating
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.incidents import Incident, IncidentKind, IncidentState
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.incidents import IncidentCall, IncidentProgress
from evergrant_server.store import Store
from evergrant_server.temporal_link.link import TemporalLink

WAVE = 25  # connections of an integration that are told, and haven't ended yet
WAVE_S = timedelta(minutes=1)  # afterwards the next ones don't wait for them


class IncidentActivities:
    """`page`: connections in one transaction; `wave` and `wave_s`: how many of an integration are under way,
    and how long the others wait for one."""

    def __init__(
        self,
        store: Store,
        link: TemporalLink,
        clock: Clock,
        origin: str,
        log_name: str,
        *,
        page: int = 20,
        wave: int = WAVE,
        wave_s: timedelta = WAVE_S,
    ) -> None:
        self._store, self._link, self._clock = store, link, clock
        self._origin, self._log_name = origin, log_name
        self._page, self._wave, self._wave_s = page, wave, wave_s

    @activity.defn(name=jobs.ADVANCE_INCIDENT.name)
    async def advance_incident(self, call: IncidentCall) -> IncidentProgress:
        """Do what is next, for a while. The order in the store says what: without one, nothing is done."""
        async with heartbeating():
            async with self._store.read() as tx:
                incident = await tx.incidents.get(call.tenant, call.incident_id)
            if incident is None:
                return IncidentProgress(state=IncidentState.DONE)
            rows = Rows(self._store, self._clock, call)
            _, progress = await for_a_while(
                incident, lambda current: self._advance(rows, current), self._clock.now
            )
            return progress

    async def _advance(self, rows: Rows, incident: Incident) -> Incident:
        """The incident after one more page or look."""
        campaign = CampaignWork(rows, self._page) if incident.kind is IncidentKind.CAMPAIGN else None
        waves = Waves(rows, self._wave, self._wave_s)
        leak = Leak(rows, waves, self._link, self._page)
        match incident.state:
            case IncidentState.HOLDING:
                return await rows.move(incident, rows.held)
            case IncidentState.SELECTING:
                if campaign is not None:
                    return await campaign.select(incident)
                return await Selection(rows, self._page).advance(incident)
            case IncidentState.ROTATING:
                return await leak.rotate(incident)
            case IncidentState.WORKING:
                if campaign is not None:
                    return await campaign.advance(incident)
                if incident.kind is not IncidentKind.LEAK:
                    return await Breach(rows, waves).advance(incident)
                return await leak.advance(incident)
            case IncidentState.CLEANING:
                return await leak.clean(incident)
            case IncidentState.REPORTING:
                return await ReportWriter(rows, self._origin, self._log_name).advance(incident)
            case IncidentState.DONE:
                return incident
