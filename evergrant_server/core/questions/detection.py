"""Uses that are unlike those before: what records say, each app's usual, and when an alarm is due. Pure.

An alarm is raised once for an object and a kind, and again only after a while.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from evergrant_server.core.audit import AuditAction, AuditRecord
from evergrant_server.core.ids import AppId, ConnectionId, DetectionId, Tenant, TenantRow
from evergrant_server.core.questions.questions import USES

MOST_DAYS = 30  # of an app, on which it was used, that its usual is made of
LEAST_DAYS = 3  # before an app has a usual


class DetectionKind(StrEnum):
    BULK_READS = "bulk_reads"  # more connections in an hour than the app's usual, or than the alarm's number
    AFTER_SILENCE = "after_silence"  # an app or a connection is used after long
    REPEATED_REFUSALS = "repeated_refusals"
    NEW_NETWORK = "new_network"  # an app calls from a network that it has not called from
    SHARED_ACCOUNT = "shared_account"  # one account at the provider is two subjects'
    UNCONFIRMED_CONSENTS = "unconfirmed_consents"
    TOKEN_REPLAYED = "token_replayed"  # a used refresh token or code came again


# what has an event of its own, and is listed with the others
ALARMS = {
    AuditAction.BULK_READ: DetectionKind.BULK_READS,
    AuditAction.ACCOUNT_SHARED: DetectionKind.SHARED_ACCOUNT,
    AuditAction.TOKEN_FAMILY_REPLAYED: DetectionKind.TOKEN_REPLAYED,
}


class Detection(TenantRow):
    """What was noticed about `object`: an app, a connection, or what a subject authorized."""

    id: DetectionId
    kind: DetectionKind
    object: str
    connection_id: ConnectionId | None = None
    app_id: AppId | None = None
    at: datetime
    facts: dict[str, Any]


@dataclass(frozen=True)
class DetectionRules:
    """The thresholds; 0 switches one off."""

    bulk_factor: float = 5
    bulk_least: int = 50
    silence: timedelta = timedelta(days=90)
    refusals: int = 100
    unconfirmed: int = 5
    new_networks: bool = True
    again_after: timedelta = timedelta(days=1)


class AppActivity(TenantRow):
    """An app's use: when last, today's counts (a day in UTC), and how many connections in an hour at most on
    each of the days before."""

    app_id: AppId
    used_at: datetime | None = None
    day: str
    most: int = 0
    refused: int = 0
    unconfirmed: int = 0
    before: tuple[int, ...] = ()

    @classmethod
    def first(cls, tenant: Tenant, app_id: AppId, at: datetime) -> "AppActivity":
        return cls(tenant=tenant, app_id=app_id, day=_day(at))

    @property
    def usual(self) -> int | None:
        """The most connections that it has used in an hour before today; None: it is too new to tell."""
        return max(self.before) if len(self.before) >= LEAST_DAYS else None

    def on(self, at: datetime) -> "AppActivity":
        """The same on the day of `at`: the counts of a day that is over become one of those before."""
        day = _day(at)
        if day <= self.day:
            return self
        before = (*self.before, self.most)[-MOST_DAYS:] if self.most else self.before
        return self.__replace__(day=day, most=0, refused=0, unconfirmed=0, before=before)

    def with_page(self, seen: "AppSeen", connections: int) -> "AppActivity":
        """After a page of records. `connections`: how many it has used in the last hour."""
        return self.__replace__(
            used_at=max(filter(None, (self.used_at, seen.last_use)), default=None),
            most=max(self.most, connections),
            refused=self.refused + seen.refused,
            unconfirmed=self.unconfirmed + seen.unconfirmed,
        )


@dataclass
class AppSeen:
    """What a page of records says of one app."""

    first_use: datetime | None = None
    last_use: datetime | None = None
    refused: int = 0
    codes: Counter[str] = field(default_factory=Counter[str])
    unconfirmed: int = 0
    unused_consents: list[str] = field(default_factory=list[str])


@dataclass
class PageSeen:
    """What a page of records says. `uses`: when each connection was first used in it, and by which app."""

    apps: dict[str, AppSeen] = field(default_factory=dict[str, AppSeen])
    by_name: dict[str, AppSeen] = field(default_factory=dict[str, AppSeen])  # whom a record names only so
    uses: dict[str, tuple[datetime, str]] = field(default_factory=dict[str, tuple[datetime, str]])
    alarms: list[AuditRecord] = field(default_factory=list[AuditRecord])


def seen_in(records: Iterable[AuditRecord], since: datetime) -> PageSeen:
    """What these records say, without those from before `since`."""
    seen = PageSeen()
    for record in records:
        if record.at < since:
            continue
        if record.action in ALARMS:
            seen.alarms.append(record)
        elif record.action in USES:
            _note_use(seen, record)
        elif record.action is AuditAction.LEASE_REFUSED:
            app = seen.apps.setdefault(str(record.detail.get("app", "")), AppSeen())
            repeated = record.detail.get("repeated")
            app.refused += repeated if isinstance(repeated, int) else 1
            app.codes[str(record.detail.get("code", ""))] += 1
        elif record.action is AuditAction.CONSENT_UNCONFIRMED:
            requested_by = str(record.detail.get("requested_by") or record.context.by)
            app = seen.by_name.setdefault(requested_by.removeprefix("app:"), AppSeen())
            app.unconfirmed += 1
            app.unused_consents.append(record.object)
    return seen


def _note_use(seen: PageSeen, record: AuditRecord) -> None:
    app_id = record.detail.get("app")
    if not isinstance(app_id, str):
        return  # an export, whose request has an alarm of its own
    app = seen.apps.setdefault(app_id, AppSeen())
    app.first_use = min(app.first_use or record.at, record.at)
    app.last_use = max(app.last_use or record.at, record.at)
    first = seen.uses.get(record.object)
    if first is None or record.at < first[0]:
        seen.uses[record.object] = (record.at, app_id)


def app_alarms(
    before: AppActivity, after: AppActivity, seen: AppSeen, rules: DetectionRules
) -> list[tuple[DetectionKind, Mapping[str, object]]]:
    """The alarms that are due about an app, with their facts, once `seen` has come."""
    alarms: list[tuple[DetectionKind, Mapping[str, object]]] = []
    usual = after.usual
    if rules.bulk_factor and usual is not None:
        limit = max(usual * rules.bulk_factor, rules.bulk_least)
        if after.most > limit:
            alarms.append((DetectionKind.BULK_READS, {"connections": after.most, "usual": usual}))
    if rules.silence and before.used_at is not None and seen.first_use is not None:
        silence = seen.first_use - before.used_at
        if silence > rules.silence:
            facts = {"used_before": before.used_at.isoformat(), "days": silence.days}
            alarms.append((DetectionKind.AFTER_SILENCE, facts))
    if rules.refusals and after.refused >= rules.refusals and seen.refused:
        facts = {"refused": after.refused, "day": after.day, "codes": dict(seen.codes.most_common(5))}
        alarms.append((DetectionKind.REPEATED_REFUSALS, facts))
    if rules.unconfirmed and after.unconfirmed >= rules.unconfirmed and seen.unconfirmed:
        facts = {"unconfirmed": after.unconfirmed, "day": after.day, "connections": seen.unused_consents[:20]}
        alarms.append((DetectionKind.UNCONFIRMED_CONSENTS, facts))
    return alarms


def _day(at: datetime) -> str:
    return at.date().isoformat()
