"""Looks at the audit records that came since the last pass, for uses that are unlike those before.

Each page of a shard's records is one transaction: the apps' counts, the alarms, and the place where the
next page begins. So each record is counted once, however often a worker is killed. No lease waits for it.
"""

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from temporalio import activity

from activities.support.temporal import heartbeating
from activities.support.transactions import commit_with_retries
from evergrant_server import audit
from evergrant_server.audit.records import ShardPlace
from evergrant_server.core.audit import AuditAction, AuditEntry, AuditRecord
from evergrant_server.core.bounded import Bounded
from evergrant_server.core.clock import Clock
from evergrant_server.core.ids import AppId, ConnectionId, DetectionId, Tenant, is_id, new_id
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.base import SCHEDULE, RequestContext
from evergrant_server.core.messages.questions import DetectPatterns, DetectPatternsResult
from evergrant_server.core.questions.detection import (
    ALARMS,
    AppActivity,
    AppSeen,
    Detection,
    DetectionKind,
    DetectionRules,
    PageSeen,
    app_alarms,
    seen_in,
)
from evergrant_server.core.questions.questions import USES
from evergrant_server.store import Store, Transaction
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.logs import LogEvent, log_event

log = logging.getLogger("evergrant.activities")

_PAGE = 500  # records
_MOST_PAGES = 2_000  # of one pass; the next one goes on
_FIRST = 5_000  # records of a shard that is new here
_OLD = timedelta(days=1)  # a record that is older says nothing of now
_HOUR = timedelta(hours=1)
_LEARNING = timedelta(days=7)  # of an app's networks
_RECENT = 200_000  # connections that are known to be in use
_CONTEXT = RequestContext(by=SCHEDULE)


class _Alarm(NamedTuple):
    kind: DetectionKind
    about: str  # the id of an app, a connection, or what a subject authorized
    facts: Mapping[str, object]
    connection_id: ConnectionId | None = None
    app_id: AppId | None = None
    recorded: bool = False  # it has a record and an event of its own


class DetectionActivities:
    def __init__(self, store: Store, clock: Clock, rules: DetectionRules) -> None:
        self._store = store
        self._clock = clock
        self._rules = rules
        self._used = Bounded[tuple[str, str], datetime](_RECENT)  # connections, with a recent use of each

    @activity.defn(name=jobs.DETECT_PATTERNS.name)
    async def detect_patterns(self, request: DetectPatterns) -> DetectPatternsResult:
        """Look at what came to every shard, and at the networks from which apps call."""
        result = DetectPatternsResult()
        async with heartbeating(lambda: result):
            detections = await self._networks()
            async with self._store.read() as tx:
                ends, places = await audit.tree_ends(tx), await tx.app_activities.places()
            records = pages = 0
            for shard in ends:
                place = places.get((shard.tenant, shard.shard))
                start = max(shard.end - _FIRST, 0) if place is None else place
                while start < shard.end and pages < _MOST_PAGES:
                    looked_at, noticed, start = await self._page(shard, place, start)
                    place, pages = start, pages + 1
                    records, detections = records + looked_at, detections + noticed
                    result = DetectPatternsResult(
                        records=records, detections=detections, complete=pages < _MOST_PAGES
                    )
        return result.__replace__(detections=detections)

    async def _page(self, shard: ShardPlace, place: int | None, start: int) -> tuple[int, int, int]:
        """The number of records of the next page, of alarms, and where the page after it begins."""
        async with self._store.read() as tx:
            page = await audit.following(tx, shard.tenant, shard.shard, start - 1, _PAGE)
            records = [stored.record for stored in page]
            seen = seen_in(records, self._clock.now() - _OLD)
            alarms = [_recorded_alarm(record) for record in seen.alarms]
            alarms += await self._silent_connections(tx, shard.tenant, seen)
        after = records[-1].seq + 1 if records else shard.end
        raised = await commit_with_retries(
            self._store, lambda tx: self._commit(tx, shard, place, after, seen, alarms)
        )
        for alarm in raised:
            _report(alarm)
        return len(records), len(raised), after

    async def _commit(
        self,
        tx: Transaction,
        shard: ShardPlace,
        place: int | None,
        after: int,
        seen: PageSeen,
        alarms: list[_Alarm],
    ) -> list[_Alarm]:
        await tx.app_activities.move_place(shard.tenant, shard.shard, place, after)
        apps = await tx.uses.apps(shard.tenant)
        of_apps = await self._app_alarms(tx, shard.tenant, seen, apps)
        return await self._raise_all(tx, shard.tenant, [*alarms, *of_apps], apps)

    # --- apps ----------------------------------------------------------------------------

    async def _app_alarms(
        self, tx: Transaction, tenant: Tenant, seen: PageSeen, apps: Mapping[str, str]
    ) -> list[_Alarm]:
        """Count what the page says of each app, and return the alarms that are due."""
        ids = {name: id for id, name in apps.items()}
        of_apps = {id: page for id, page in seen.apps.items() if id in apps}
        for name, page in seen.by_name.items():
            if name in ids:
                mine = of_apps.setdefault(ids[name], AppSeen())
                mine.unconfirmed += page.unconfirmed
                mine.unused_consents += page.unused_consents
        alarms: list[_Alarm] = []
        for app_id, page in sorted(of_apps.items()):
            now = self._clock.now()
            stored = await tx.app_activities.get(tenant, app_id)
            before = stored or AppActivity.first(tenant, AppId(app_id), now)
            connections = await tx.app_activities.connections_used(tenant, app_id, now - _HOUR)
            after = before.on(now).with_page(page, connections if page.last_use else 0)
            await tx.app_activities.write(stored, after)
            alarms += [
                _Alarm(kind, app_id, facts, app_id=AppId(app_id))
                for kind, facts in app_alarms(before, after, page, self._rules)
            ]
        return alarms

    # --- connections ---------------------------------------------------------------------

    async def _silent_connections(self, tx: Transaction, tenant: Tenant, seen: PageSeen) -> list[_Alarm]:
        """The alarms about connections that nothing had used for long, and that were used before that."""
        silence = self._rules.silence
        alarms: list[_Alarm] = []
        for id, (at, app_id) in seen.uses.items() if silence else ():
            known = self._used.get((tenant, id))
            self._used[tenant, id] = at
            if (known is not None and at - known <= silence) or not is_id(id, "con"):
                continue
            in_time = audit.Window(at - silence, at, actions=USES)
            if await audit.page(tx, tenant, window=in_time, object=id, limit=1, newest_first=True):
                continue
            long_ago = audit.Window(None, at - silence, actions=USES)
            before = await audit.page(tx, tenant, window=long_ago, object=id, limit=1, newest_first=True)
            if before:
                facts = {"used_before": before[0].at.isoformat(), "days": (at - before[0].at).days}
                alarms.append(_Alarm(DetectionKind.AFTER_SILENCE, id, facts, ConnectionId(id), AppId(app_id)))
        return alarms

    # --- networks ------------------------------------------------------------------------

    async def _networks(self) -> int:
        """Look at networks from which apps have called for the first time; returns how many are alarms."""
        if not self._rules.new_networks:
            return 0
        since, number = self._clock.now() - _OLD, 0
        async with self._store.read() as tx:
            networks = await tx.app_activities.new_networks(since, _PAGE)
        for network in networks:
            if network.first_at - network.known_since < _LEARNING:
                continue
            facts = {"network": network.network}
            alarm = _Alarm(DetectionKind.NEW_NETWORK, network.app_id, facts, app_id=network.app_id)
            number += await self._raise_network(network.tenant, alarm)
        return number

    async def _raise_network(self, tenant: Tenant, alarm: _Alarm) -> int:
        async def write(tx: Transaction) -> list[_Alarm]:
            return await self._raise_all(tx, tenant, [alarm], await tx.uses.apps(tenant))

        raised = await commit_with_retries(self._store, write)
        for each in raised:
            _report(each)
        return len(raised)

    # --- alarms --------------------------------------------------------------------------

    async def _raise_all(
        self, tx: Transaction, tenant: Tenant, alarms: list[_Alarm], apps: Mapping[str, str]
    ) -> list[_Alarm]:
        """Write each alarm, with its record and so its event, unless it was raised a while ago."""
        now, raised, entries = self._clock.now(), list[_Alarm](), list[AuditEntry]()
        for alarm in alarms:
            since = now - self._rules.again_after
            if await tx.detections.has_since(tenant, alarm.kind, alarm.about, since):
                continue
            detection = Detection(
                tenant=tenant,
                id=DetectionId(new_id("det")),
                kind=alarm.kind,
                object=alarm.about,
                connection_id=alarm.connection_id,
                app_id=alarm.app_id,
                at=now,
                facts=dict(alarm.facts),
            )
            await tx.detections.add(detection)
            raised.append(alarm)
            if not alarm.recorded:
                entries.append(_entry(detection, apps.get(alarm.app_id or ""), now))
        if entries:
            await audit.append_all(tx, entries)
        return raised


def _recorded_alarm(record: AuditRecord) -> _Alarm:
    """The alarm that a record is by itself."""
    connection = ConnectionId(record.object) if is_id(record.object, "con") else None
    app = AppId(record.object) if is_id(record.object, "app") else None
    facts = {"record": f"{record.shard}/{record.seq}", "by": record.context.by}
    return _Alarm(ALARMS[record.action], record.object, facts, connection, app, recorded=True)


def _entry(detection: Detection, app: str | None, now: datetime) -> AuditEntry:
    detail = {"detection": detection.id, "kind": detection.kind.value, "app": app, **detection.facts}
    return AuditEntry(
        tenant=detection.tenant,
        at=now,
        action=AuditAction.DETECTED,
        object=detection.object,
        context=_CONTEXT,
        detail=detail,
    )


def _report(alarm: _Alarm) -> None:
    metrics.count(metrics.DETECTIONS, alarm.kind)
    if not alarm.recorded:
        log_event(log, logging.WARNING, LogEvent.DETECTED, alarm.kind.replace("_", " "), object=alarm.about)
