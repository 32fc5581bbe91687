"""Which connections an incident is about. Of a breach each is stopped in the transaction that lists it.

Those of a leaver are listed and held by the order. Once the grace is over, they and those that have come
since are stopped for good.
"""

import functools
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from activities.incidents.rows import Rows, chunks, reason_of
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.incidents import ConnectionsOrder, Incident, IncidentItem, IncidentKind
from evergrant_server.core.ids import ConnectionId
from evergrant_server.store import Transaction
from evergrant_server.store.connections.incidents import ListedPlace

_IDS = 200  # connections of one query
_RECORDS = 500  # of the audit log
# what hands a token out, or uses it for its app
_LEASES = (AuditAction.LEASE_ISSUED, AuditAction.DPOP_PROOF_ISSUED, AuditAction.PROXY_CALLED)


class _Candidates(NamedTuple):
    """Connections of a page, and where the next one begins; None: there is none."""

    ids: list[ConnectionId]
    after: str | None


class Selection:
    def __init__(self, rows: Rows, page: int) -> None:
        self._rows, self._page = rows, page

    async def advance(self, incident: Incident) -> Incident:
        """List the next page of candidates, and go on behind it."""
        async with self._rows.store.read() as tx:
            candidates = await self._candidates(tx, incident)
        for ids in chunks(candidates.ids, self._page):
            incident = await self._rows.move(incident, functools.partial(self._list, ids))
            if incident.paused:
                return incident

        async def go_on(_: Transaction, current: Incident) -> Incident:
            if candidates.after is None:
                return current.following()
            return current.__replace__(after=candidates.after)

        return await self._rows.move(incident, go_on)

    async def _candidates(self, tx: Transaction, incident: Incident) -> _Candidates:
        tenant, after = incident.tenant, incident.after
        if incident.by_time:
            return await _leased_then(tx, incident)
        if incident.kind is IncidentKind.LEAVER:
            leaver = await tx.leavers.get(tenant, incident.id)
            matches = () if leaver is None else leaver.matches  # None: erased meanwhile
            ids = await tx.incident_items.of_leaver(incident, matches, after, _IDS)
            return _Candidates(ids, ids[-1] if len(ids) == _IDS else None)
        if incident.app_id is not None:
            ids = await tx.incident_items.leased_by(tenant, incident.app_id, after, _IDS)
        else:
            ids = await tx.incident_items.live(tenant, incident.integration, after, _IDS)
        return _Candidates(ids, ids[-1] if len(ids) == _IDS else None)

    async def _list(self, ids: list[ConnectionId], tx: Transaction, incident: Incident) -> Incident:
        places = await tx.incident_items.places(incident.tenant, ids)
        uses = await tx.incident_items.last_uses(incident.tenant, ids)
        added = 0
        for place in places:
            if incident.integration is not None and place.integration != incident.integration:
                continue
            is_new = await tx.incident_items.add(listed_item(incident, place, uses))
            added += is_new
            stops = is_new and incident.kind is IncidentKind.BREACH
            if stops or incident.kind is IncidentKind.LEAVER:
                await self._stop(tx, incident, place.id)
        return incident.__replace__(selected=incident.selected + added)

    async def _stop(self, tx: Transaction, incident: Incident, id: ConnectionId) -> None:
        """Write `revoking`: no token of it is leased once this is committed."""
        connection = await tx.revocable_rows.connection(incident.tenant, id, self._rows.now)
        if connection is None or connection.has_ended:
            return
        reason = reason_of(incident)
        requested = connection.revocation_requested(reason, self._rows.now)
        await tx.connections.replace(requested, expected=connection.revision)
        action, detail = AuditAction.REVOCATION_REQUESTED, {"reason": reason, "incident": incident.id}
        await self._rows.record(tx, incident, action, id, **detail)


async def _leased_then(tx: Transaction, incident: Incident) -> _Candidates:
    """The connections of which the next records of the time say that a token was leased, by the app if the
    incident names one."""
    window = audit.Window(incident.since, incident.until, actions=_LEASES)
    after = incident.after or None
    records = await audit.page(tx, incident.tenant, window=window, after=after, limit=_RECORDS)
    ids = {
        ConnectionId(record.object): None
        for record in records
        if incident.app_id is None or record.detail.get("app") == incident.app_id
    }
    return _Candidates(list(ids), audit.page_cursor(records[-1]) if len(records) == _RECORDS else None)


def listed_item(
    order: ConnectionsOrder[Any], place: ListedPlace, uses: Mapping[str, datetime]
) -> IncidentItem:
    """The row of a connection that an order is about."""
    return IncidentItem.model_validate(
        {
            "tenant": order.tenant,
            "incident_id": order.id,
            "connection_id": place.id,
            "integration": place.integration,
            "provider": place.provider,
            "generation": place.generation,
            "used_at": uses.get(place.id),
        }
    )
