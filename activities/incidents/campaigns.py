"""Of a campaign: subjects are asked to consent to another client, wave by wave, and reminded.

Apps hear `connection.needs_reauth` of a connection that goes on working with the client of before. Its grant
says which client has got it: what becomes of a connection is read there.
"""

from datetime import timedelta

from activities.incidents.rows import Rows, chunks
from activities.incidents.selecting import listed_item
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.campaigns import MONTH, Campaign, CampaignEnd
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.incidents import Incident, IncidentItem, ItemOutcome, ItemStep
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.messages.connection import RevokedAtProvider
from evergrant_server.core.messages.names import SignalName
from evergrant_server.core.provider_events import ReportSource
from evergrant_server.store import Transaction

_IDS = 200  # connections of one query
_LOOKED_AT = 100  # connections of one look
_SOON = timedelta(seconds=30)
_UNREADABLE = (ErrorCode.AUTHORITY_BROKEN, ErrorCode.INTERNAL)


class CampaignWork:
    """`page`: connections in one transaction."""

    def __init__(self, rows: Rows, page: int) -> None:
        self._rows, self._page = rows, page

    async def select(self, incident: Incident) -> Incident:
        """List the next connections of the client of before, each with how much it is used."""
        async with self._rows.store.read() as tx:
            campaign = await tx.campaigns.get(incident.tenant, incident.id)
            ids: list[ConnectionId] = []
            if campaign is not None:
                place = (incident.tenant, campaign.older, incident.after, _IDS)
                ids = await tx.campaign_items.live_of_client(*place)
        for some in chunks(ids, self._page):

            async def add(tx: Transaction, current: Incident, some: list[ConnectionId] = some) -> Incident:
                return await self._list(tx, current, some)

            incident = await self._rows.move(incident, add)
            if incident.paused:
                return incident

        async def go_on(_: Transaction, current: Incident) -> Incident:
            return current.__replace__(after=ids[-1]) if len(ids) == _IDS else current.following()

        return await self._rows.move(incident, go_on)

    async def _list(self, tx: Transaction, incident: Incident, ids: list[ConnectionId]) -> Incident:
        places = await tx.incident_items.places(incident.tenant, ids)
        uses = await tx.incident_items.last_uses(incident.tenant, ids)
        leases = await tx.campaign_items.leases(incident.tenant, ids, incident.created_at - MONTH)
        added = 0
        for place in places:
            item = listed_item(incident, place, uses).__replace__(leases=leases[place.id])
            added += await tx.incident_items.add(item)
        return incident.__replace__(selected=incident.selected + added)

    async def advance(self, incident: Incident) -> Incident:
        """Note who has consented, ask the next ones, remind, or end it."""
        return await self._rows.move(incident, self._look)

    async def _look(self, tx: Transaction, incident: Incident) -> Incident:
        before = await tx.campaigns.get(incident.tenant, incident.id)
        if before is None:
            return incident.following()
        after = incident.with_ended(await self._note(tx, incident, before))
        if after.ended - incident.ended == _LOOKED_AT:
            return after.__replace__(idle=0)
        if self._rows.is_over(incident):
            return await self._end(tx, after, before)
        now, is_listed = self._rows.now, bool(await tx.campaign_items.to_ask(incident, 1))
        campaign = before.at(now) if is_listed else before.__replace__(to_ask=0)
        if campaign.wave > before.wave:
            detail = {"wave": campaign.wave, "size": campaign.wave_size}
            await self._rows.record(tx, incident, AuditAction.CAMPAIGN_WAVE_BEGUN, incident.id, **detail)
        campaign, outcomes = await self._ask(tx, incident, campaign)
        campaign = await self._remind(tx, incident, campaign)
        after = after.with_ended(outcomes)
        changed = after.ended > incident.ended or campaign != before
        if campaign != before:
            await tx.campaigns.replace(campaign, expected=before.revision)
        if not await tx.incident_items.any_open(incident):
            return after.following()
        busy = campaign.to_ask or campaign.reminded > before.reminded
        moment = min(campaign.wave_at, incident.waits_until) if is_listed else incident.waits_until
        soon = moment < now + _SOON
        return after.__replace__(idle=0 if busy else 1 if changed or soon else incident.idle + 1)

    async def _note(self, tx: Transaction, incident: Incident, campaign: Campaign) -> list[ItemOutcome]:
        settled = await tx.campaign_items.settled(incident, campaign.newer, _LOOKED_AT)
        outcomes = [
            ItemOutcome.CONSENTED if has_consented else ItemOutcome.GONE for _, has_consented in settled
        ]
        for (item, _), outcome in zip(settled, outcomes, strict=True):
            await self._rows.end(tx, item, outcome)
        return outcomes

    async def _ask(
        self, tx: Transaction, incident: Incident, campaign: Campaign
    ) -> tuple[Campaign, list[ItemOutcome]]:
        """Ask the next subjects of the wave. Who needs no consent takes nobody's place in it."""
        if not campaign.to_ask:
            return campaign, []
        turns = await tx.campaign_items.to_ask(incident, min(campaign.to_ask, self._page))
        outcomes: list[ItemOutcome] = []
        asked = 0
        for item in turns:
            connection = await self._readable(tx, item)
            outcome = _needs_no_consent(connection)
            if outcome is not None or connection is None:
                outcomes.append(outcome or ItemOutcome.GONE)
                await self._rows.end(tx, item, outcomes[-1])
                continue
            told = item.__replace__(step=ItemStep.TOLD, told_at=self._rows.now, wave=campaign.wave)
            await tx.incident_items.replace(told, expected=item.revision)
            await self._tell_apps(tx, incident, item, wave=campaign.wave)
            asked += 1
        return campaign.__replace__(to_ask=campaign.to_ask - asked, asked=campaign.asked + asked), outcomes

    async def _readable(self, tx: Transaction, item: IncidentItem) -> Connection | None:
        try:
            return await tx.connections.get_authentic(item.tenant, item.connection_id)
        except Failure as failure:
            if failure.code not in _UNREADABLE:
                raise
            return None  # who may change it isn't Evergrant's word: doctor names the row

    async def _remind(self, tx: Transaction, incident: Incident, campaign: Campaign) -> Campaign:
        now = self._rows.now
        moments = [now - timedelta(seconds=seconds) for seconds in campaign.remind_s]
        due = await tx.campaign_items.to_remind(incident, moments, self._page)
        for item in due:
            assert item.told_at is not None
            reminders = campaign.reminders_due(item.told_at, now)
            reminded = item.__replace__(reminders=reminders)
            await tx.incident_items.replace(reminded, expected=item.revision)
            await self._tell_apps(tx, incident, item, reminder=reminders)
        return campaign.__replace__(reminded=campaign.reminded + len(due))

    async def _tell_apps(
        self, tx: Transaction, incident: Incident, item: IncidentItem, **detail: object
    ) -> None:
        """Publish that the subject has to consent: its app makes the link."""
        facts = {"campaign": incident.id, "reason": ErrorCode.RECONSENT_REQUIRED.value, **detail}
        facts["ends_at"] = incident.waits_until.isoformat()
        await self._rows.record(tx, incident, AuditAction.RECONNECT_REQUESTED, item.connection_id, **facts)

    async def _end(self, tx: Transaction, incident: Incident, campaign: Campaign) -> Incident:
        """Keep or stop the next ones of those that are left."""
        left = await tx.campaign_items.unfinished(incident, self._page)
        outcomes: list[ItemOutcome] = []
        for item in left:
            outcome = ItemOutcome.KEPT
            if campaign.end is CampaignEnd.STOP:
                outcome = await self._stop(tx, incident, item)
            await self._rows.end(tx, item, outcome)
            outcomes.append(outcome)
        after = incident.with_ended(outcomes)
        return after.__replace__(idle=0) if left else after.following()

    async def _stop(self, tx: Transaction, incident: Incident, item: IncidentItem) -> ItemOutcome:
        """Write that its subject has to consent, from whose commit on no token of it is leased, and tell its
        workflow, which refreshes it no more."""
        connection = await self._readable(tx, item)
        if connection is None or connection.has_ended:
            return ItemOutcome.GONE
        if not connection.may_change_client or connection.state is LifecycleState.PENDING_CONSENT:
            return ItemOutcome.KEPT
        now, reason = self._rows.now, ErrorCode.RECONSENT_REQUIRED
        await tx.connections.replace(connection.rejected(reason, now), expected=connection.revision)
        message = RevokedAtProvider(
            generation=connection.generation,
            source=ReportSource.CAMPAIGN,
            context=self._rows.context(incident),
        )
        await self._rows.signal(tx, incident, item, SignalName.REVOKED_AT_PROVIDER, message)
        detail = {"reason": reason.value, "campaign": incident.id, "generation": connection.generation}
        await self._rows.record(tx, incident, AuditAction.NEEDS_REAUTH, connection.id, **detail)
        return ItemOutcome.STOPPED


def _needs_no_consent(connection: Connection | None) -> ItemOutcome | None:
    """The outcome of a connection whose subject isn't asked; None: it is."""
    if connection is None or connection.has_ended or connection.held_by is not None:
        return ItemOutcome.GONE
    if not connection.may_change_client:
        return ItemOutcome.NOT_SUPPORTED
    if connection.state is LifecycleState.PENDING_CONSENT:
        return ItemOutcome.NOTHING_HELD  # its next link is of the new client
    return None
