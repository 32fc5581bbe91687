"""The report of an incident: a line for each connection, from its audit records, and a signature over all.

It names connections by their ids and no subject: no erasure reaches a copy. Its lines are stored as they
are signed.
"""

from collections.abc import Mapping
from typing import Any

from activities.incidents.rows import Rows
from evergrant_server import audit
from evergrant_server.audit.checkpoints.heads import log_signer
from evergrant_server.audit.checkpoints.notes import verifier_key
from evergrant_server.core.audit import AuditAction, AuditRecord
from evergrant_server.core.connections.incidents import (
    REPORT_FORMAT,
    Incident,
    IncidentKind,
    ItemOutcome,
    note_text,
    outcome_of_revocation,
    report_line,
)
from evergrant_server.core.ids import Tenant
from evergrant_server.store import Transaction
from evergrant_server.store.connections.incidents import ListedConnection
from evergrant_server.telemetry import metrics

_LINES = 100  # of one transaction
# what a record says that a report repeats
_EVIDENCE = ("how", "answers", "keys_destroyed", "reason", "generation")
# what became of a leaver's connection that isn't revoked
_KEPT = {
    ItemOutcome.HANDED_OVER: AuditAction.CONNECTION_HANDED_OVER,
    ItemOutcome.RESTORED: AuditAction.CONNECTION_RESTORED,
}
_ENDS = {
    IncidentKind.LEAVER: AuditAction.OFFBOARDING_ENDED,
    IncidentKind.CAMPAIGN: AuditAction.CAMPAIGN_ENDED,
}
_SECRET_ACTIONS = (AuditAction.SECRET_ROTATED, AuditAction.CLIENT_REGISTERED)


class ReportWriter:
    def __init__(self, rows: Rows, origin: str, log_name: str) -> None:
        """`log_name` is the audit log's, whose key signs the report."""
        self._rows, self._origin, self._log_name = rows, origin, log_name

    async def advance(self, incident: Incident) -> Incident:
        """The incident with the next lines; behind the last one it is signed, and done."""
        if not incident.header:
            return await self._rows.move(incident, self._begin)
        async with self._rows.store.read() as tx:
            page = await tx.incident_items.page(incident, incident.after or None, _LINES)
        if page:
            return await self._rows.move(incident, lambda tx, current: self._write(tx, current, page))
        return await self._rows.move(incident, self._finish)

    async def _begin(self, tx: Transaction, incident: Incident) -> Incident:
        if incident.header:
            return incident
        header = report_line(
            {
                "report": REPORT_FORMAT,
                "installation": self._origin,
                "tenant": incident.tenant,
                "incident": incident.id,
                "kind": incident.kind,
                "scope": incident.scope,
                "reason": incident.reason,
                "by": incident.by,
                "opened_at": incident.created_at.isoformat(),
            }
        )
        # counted again, by what the lines say
        return incident.__replace__(header=header, outcomes={}).with_lines([header])

    async def _write(self, tx: Transaction, incident: Incident, page: list[ListedConnection]) -> Incident:
        lines: list[str] = []
        outcomes: list[ItemOutcome] = []
        for connection in page:
            members = await _members(tx, incident, connection)
            line, outcome = report_line(members), ItemOutcome(members["outcome"])
            written = connection.item.__replace__(line=line, outcome=outcome)
            await tx.incident_items.replace(written, expected=connection.item.revision)
            lines.append(line)
            outcomes.append(outcome)
        counted = incident.with_ended(outcomes).__replace__(ended=incident.ended)
        return counted.with_lines(lines).__replace__(after=page[-1].item.connection_id)

    async def _finish(self, tx: Transaction, incident: Incident) -> Incident:
        finished = incident.following().__replace__(finished_at=self._rows.now)
        facts: dict[str, Any] = {
            "selected": incident.selected,
            "reported": incident.lines - 1,
            "outcomes": incident.outcomes,
            "finished_at": self._rows.now.isoformat(),
        }
        if incident.kind is IncidentKind.LEAK:
            facts["client_secrets"] = await _secrets(tx, incident)
        undone_at = None if incident.undone_at is None else incident.undone_at.isoformat()
        if incident.kind is IncidentKind.LEAVER:
            facts |= {"ended": incident.beside, "undone_at": undone_at}
        if incident.kind is IncidentKind.CAMPAIGN:
            facts |= {"undone_at": undone_at, **await _clients(tx, incident)}
        summary = report_line(facts)
        finished = finished.__replace__(summary=summary).with_lines([summary])
        signer = await log_signer(tx, self._log_name)
        key = verifier_key(signer.name, signer.public)
        for outcome, count in incident.outcomes.items():
            metrics.count_incident_connections(count, outcome)
        detail = {"kind": incident.kind, **incident.scope, "connections": incident.selected}
        detail |= {"outcomes": incident.outcomes, "digest": finished.digest, "key": key}
        action = _ENDS.get(incident.kind, AuditAction.INCIDENT_ENDED)
        await self._rows.record(tx, incident, action, incident.id, **detail)
        return finished.__replace__(note=report_line({"note": signer.note(note_text(finished)), "key": key}))


async def _members(tx: Transaction, incident: Incident, connection: ListedConnection) -> dict[str, Any]:
    """What the line of one connection says."""
    item = connection.item
    named: dict[str, Any] = {
        "connection": item.connection_id,
        "integration": item.integration,
        "provider": item.provider,
        "last_leased_at": None if item.used_at is None else item.used_at.isoformat(),
        "state": connection.state or "erased",
    }
    if incident.kind is IncidentKind.CAMPAIGN:
        asked_at = None if item.told_at is None else item.told_at.isoformat()
        named |= {"wave": item.wave, "asked_at": asked_at, "reminders": item.reminders}
        record = await _newest(tx, incident.tenant, item.connection_id, AuditAction.GRANT_INSTALLED)
        installed = item.outcome is ItemOutcome.CONSENTED
        kept = ItemOutcome.UNKNOWN if incident.undone_at is None else ItemOutcome.KEPT
        outcome = item.outcome or kept
        return named | {"outcome": outcome, "evidence": _evidence(record) if installed else None}
    if incident.kind is IncidentKind.LEAVER:
        named["matched_by"] = item.matched
        kept = None if item.outcome is None else _KEPT.get(item.outcome)
        if kept is not None:
            record = await _newest(tx, incident.tenant, item.connection_id, kept)
            return named | {"outcome": item.outcome, "evidence": _evidence(record)}
    if incident.kind is IncidentKind.LEAK:
        record = await _newest(tx, incident.tenant, item.connection_id, AuditAction.GRANT_REFRESHED)
        renewed = record is not None and record.at >= incident.created_at
        evidence = _evidence(record) if renewed else None
        return named | {"outcome": item.outcome or ItemOutcome.UNKNOWN, "evidence": evidence}
    record = await _newest(tx, incident.tenant, item.connection_id, AuditAction.REVOKED)
    if record is not None:
        outcome = outcome_of_revocation(record.detail.get("how"))
    elif item.outcome is ItemOutcome.NOTHING_HELD:  # its consent has ended without a grant
        outcome = item.outcome
    else:
        outcome = ItemOutcome.UNKNOWN
        record = await _newest(tx, incident.tenant, item.connection_id, AuditAction.REVOCATION_FAILED)
    return named | {"outcome": outcome, "evidence": _evidence(record)}


async def _clients(tx: Transaction, incident: Incident) -> dict[str, Any]:
    """The client ids of both integrations, as far as they are there, and how many were asked and reminded."""
    campaign = await tx.campaigns.get(incident.tenant, incident.id)
    if campaign is None:
        return {}
    clients: dict[str, str | None] = {}
    for name, id in (("older", campaign.older), ("newer", campaign.newer)):
        integration = await tx.integrations.get_unchecked(incident.tenant, id)
        clients[name] = None if integration is None else integration.client_id
    return {"clients": clients, "asked": campaign.asked, "reminded": campaign.reminded}


async def _newest(tx: Transaction, tenant: Tenant, id: str, action: AuditAction) -> AuditRecord | None:
    return await audit.newest_record(tx, tenant, id, action)


def _evidence(record: AuditRecord | None) -> Mapping[str, Any] | None:
    """Where the audit record of it is, when it was written, and what the provider has answered."""
    if record is None:
        return None
    facts = {name: record.detail[name] for name in _EVIDENCE if name in record.detail}
    place = f"{record.shard}/{record.seq}"
    return {"record": place, "action": record.action, "at": record.at.isoformat(), **facts}


async def _secrets(tx: Transaction, incident: Incident) -> dict[str, bool]:
    """Of each integration: whether its client has got a new secret since the incident was opened."""
    replaced: dict[str, bool] = {}
    after: str | None = None
    while page := await tx.integrations.page(incident.tenant, after, _LINES):
        for integration in page:
            if incident.integration in (None, integration.name):
                records = await audit.newest_records(
                    tx, incident.tenant, integration.id, _SECRET_ACTIONS, incident.created_at
                )
                replaced[integration.name] = bool(records)
        after = page[-1].name
    return replaced
