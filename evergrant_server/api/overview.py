"""`/v1/overview`: what needs somebody, what ends soon, what was done lately, and how providers are.

A fixed number of statements, however many connections there are. Who doesn't see the whole tenant gets what
its permits cover, of the first rows that wait.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from fastapi import APIRouter

from evergrant_server.api.http.call import ApiCall, Call
from evergrant_server.api.http.models import View
from evergrant_server.api.integrations.health import TURNS
from evergrant_server.api.integrations.models import FailedExchangeView
from evergrant_server.api.integrations.routes import failed_exchange
from evergrant_server.audit.exchanges import newest_exchanges
from evergrant_server.audit.records import newest_drills
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import FAILURES, ErrorCode
from evergrant_server.core.errors.kinds import Repairer
from evergrant_server.core.integrations import Integration, IntegrationState
from evergrant_server.policy import Target
from evergrant_server.store import Transaction
from evergrant_server.store.questions.overview import (
    Attention,
    ComingEnd,
    HourCount,
    IntegrationCount,
    KeyAge,
    WaitingDecisions,
)

router = APIRouter(tags=["overview"])

SHOWN = timedelta(hours=48)  # of leases and refreshes
SOON = timedelta(days=30)
_MOST_INTEGRATIONS = 200
_MOST_CAUSES = 50
_LEASES = (AuditAction.LEASE_ISSUED, AuditAction.DPOP_PROOF_ISSUED, AuditAction.PROXY_CALLED)


class AttentionView(View):
    """Connections of one integration that fail, or wait, for one cause: whose turn it is, and since when.

    `code` null: they wait for the subject's first consent, or for the provider to confirm a revocation. Where
    an admin has to repair what their newest consents have failed by, the code is that failure.
    """

    integration: str
    provider: str
    state: LifecycleState
    code: ErrorCode | None
    repairer: Repairer
    meaning: str
    repair: str
    connections: int
    since: datetime


class WaitingView(View):
    """Decisions or repairs that wait for an admin: `access_request`, `call`, `approval`, `definition`,
    `webhook` (it fails, or is disabled)."""

    kind: str
    number: int
    since: datetime


class EndView(View):
    """What ends within 30 days. `kind`: `key`, `permit` and `agent` (`owner` is the app); `client_secret`,
    `certificate` and `rotation` of the integration `name`; `refresh_token` of `connections` at it, unless a
    refresh moves that end; `access_token` of those that nothing refreshes. `at` is the first of several."""

    kind: str
    name: str
    owner: str
    at: datetime
    connections: int


class HourView(View):
    """What was counted in an hour, a few seconds late. `leases`: tokens, proofs and calls of the gateway."""

    hour: datetime
    leases: int
    refreshes: int
    failed: int


class StandingView(View):
    """How an integration is: what `GET /v1/integrations/{name}` says of it, and its live connections."""

    name: str
    provider: str
    state: IntegrationState
    problem: str | None
    binding: Binding
    secret_refused_at: datetime | None
    previous_secret_until: datetime | None
    client_secret_expires_at: datetime | None
    client_certificate_expires_at: datetime | None
    failed_exchange: FailedExchangeView | None
    active: int
    failing: int
    needs_reauth: int
    pending_consent: int
    revoking: int


class KeyAgeView(View):
    """Since when a key is the current one of its purpose. `service` null: a key of the tenant; else a root,
    and the service that wraps it."""

    purpose: str
    service: str | None
    at: datetime | None


class OverviewView(View):
    """`whole`: the caller sees everything of the tenant; else `waiting`, `ends`, `hours` and `keys` are
    empty. `complete` false: counts have stopped at 20,000 connections of a state, or at 100,000 in all.

    `hours` begins with the first hour that workers have counted. `key_rotation` is the setting, in seconds;
    null: keys are rotated by hand. `archived_at`: when PostgreSQL has last archived a piece of its log; null:
    it says nothing, and of other backups Evergrant knows nothing. `drilled_at`: when a backup was last
    restored beside the installation and found whole; null: never.
    """

    at: datetime
    whole: bool
    complete: bool
    attention: tuple[AttentionView, ...]
    waiting: tuple[WaitingView, ...]
    ends: tuple[EndView, ...]
    hours: tuple[HourView, ...]
    integrations: tuple[StandingView, ...]
    keys: tuple[KeyAgeView, ...]
    key_rotation: float | None
    archived_at: datetime | None
    drilled_at: datetime | None


@router.get("/v1/overview")
async def get_overview(call: Call) -> OverviewView:
    """What needs somebody and whose turn it is; what ends soon; leases and refreshes of two days; how each
    integration is, and how old keys are. Of what the caller's permits cover."""
    whole = call.may_audit(Target())
    async with call.api.store.read() as tx:
        attention, complete = await _attention(tx, call)
        standings, ends, all_counted = await _standings(tx, call, attention)
        facts = await _facts_of_tenant(tx, call, ends) if whole else _NOTHING
    rotation = call.api.settings.key_rotation
    return OverviewView(
        at=call.now,
        whole=whole,
        complete=complete and all_counted,
        attention=tuple(sorted(map(_attention_view, attention), key=_turn)[:_MOST_CAUSES]),
        integrations=standings,
        key_rotation=None if rotation is None or not whole else rotation.total_seconds(),
        **facts,
    )


_NOTHING: Mapping[str, Any] = {
    **dict.fromkeys(("waiting", "ends", "hours", "keys"), ()),
    **dict.fromkeys(("archived_at", "drilled_at"), None),
}


async def _facts_of_tenant(tx: Transaction, call: ApiCall, ends: list[ComingEnd]) -> dict[str, Any]:
    """What is the whole tenant's."""
    tenant, now = call.tenant, call.now
    ends = sorted([*ends, *await tx.overviews.ends(tenant, now, SOON)], key=lambda end: end.at)
    waiting: list[WaitingDecisions] = await tx.overviews.decisions(tenant, now)
    keys: list[KeyAge] = await tx.overviews.keys(tenant)
    return {
        "waiting": tuple(WaitingView(**decisions._asdict()) for decisions in waiting),
        "ends": tuple(EndView(**end._asdict()) for end in ends),
        "hours": tuple(_hours(await tx.overviews.hours(tenant, now - SHOWN), now)),
        "keys": tuple(KeyAgeView(**age._asdict()) for age in keys),
        "archived_at": await tx.overviews.archived_at(),
        "drilled_at": (await newest_drills(tx)).good_at,
    }


async def _attention(tx: Transaction, call: ApiCall) -> tuple[list[Attention], bool]:
    if call.may_see(Target()):
        return await tx.overviews.attention(call.tenant)
    return await tx.overviews.attention_for(call.tenant, lambda *names: call.may_see(Target(*names)))


_FIRST_CONSENT = "The subject opens the connect link."


def _attention_view(group: Attention) -> AttentionView:
    code = _known(group.code)
    rule = None if code is None else FAILURES[code]
    if group.state is LifecycleState.REVOKING or rule is None:
        is_revoking = group.state is LifecycleState.REVOKING
        turn = Repairer.TIME if is_revoking else Repairer.SUBJECT
        meaning = "The provider has not confirmed yet." if is_revoking else "They wait for a first consent."
        repair = "None: a worker tries again." if is_revoking else _FIRST_CONSENT
        facts = {"code": None, "repairer": turn, "meaning": meaning, "repair": repair}
    else:
        facts = {"code": code, "repairer": rule.repairer, "meaning": rule.meaning, "repair": rule.repair}
    names = {name: getattr(group, name) for name in ("integration", "provider", "state", "connections")}
    return AttentionView(**names, since=group.since, **facts)


def _known(code: str | None) -> ErrorCode | None:
    """A code that a newer version wrote is shown as INTERNAL."""
    return None if code is None else ErrorCode(code) if code in set(ErrorCode) else ErrorCode.INTERNAL


def _turn(view: AttentionView) -> tuple[int, int, str]:
    """What an admin repairs first; of one turn where most connections are."""
    return TURNS.index(view.repairer), -view.connections, view.integration


async def _standings(
    tx: Transaction, call: ApiCall, attention: Iterable[Attention]
) -> tuple[tuple[StandingView, ...], list[ComingEnd], bool]:
    """How each integration is that the caller administers or audits, what of its client ends, and whether
    its connections were all counted."""
    integrations = [
        integration
        for integration in await tx.integrations.page(call.tenant, None, _MOST_INTEGRATIONS)
        if call.may_audit(Target(integration.name, integration.provider))
    ]
    if not integrations:
        return (), [], True
    exchanges = await newest_exchanges(tx, call.tenant)
    counts, all_counted = await tx.overviews.live_by_integration(call.tenant)
    failing: dict[str, int] = {}
    for group in attention:
        if group.state is LifecycleState.ACTIVE:
            failing[group.integration] = failing.get(group.integration, 0) + group.connections
    standings = tuple(
        StandingView.of(
            integration,
            failed_exchange=failed_exchange(call, integration, exchanges),
            failing=failing.get(integration.name, 0),
            **_states_of(integration.name, counts),
        )
        for integration in integrations
    )
    ends = [end for integration in integrations for end in _ends_of_client(integration, call.now)]
    return standings, ends, all_counted


def _states_of(name: str, counts: Iterable[IntegrationCount]) -> dict[str, int]:
    states = ("active", "needs_reauth", "pending_consent", "revoking")
    numbers = {count.state.value: count.connections for count in counts if count.integration == name}
    return {state: numbers.get(state, 0) for state in states}


def _ends_of_client(integration: Integration, now: datetime) -> Iterable[ComingEnd]:
    ends = {
        "client_secret": integration.client_secret_expires_at,
        "certificate": integration.client_certificate_expires_at,
        "rotation": integration.previous_secret_until,
    }
    for kind, at in ends.items():
        if at is not None and now < at <= now + SOON:
            yield ComingEnd(kind, integration.name, integration.provider, at, 0)


def _hours(counts: list[HourCount], now: datetime) -> Iterable[HourView]:
    """Every hour from the first that was counted until now, also those in which nothing happened."""
    if not counts:
        return
    hour, last = counts[0].hour, now.replace(minute=0, second=0, microsecond=0)
    while hour <= last:
        numbers = {count.action: count.number for count in counts if count.hour == hour}
        yield HourView(
            hour=hour,
            leases=sum(numbers.get(action, 0) for action in _LEASES),
            refreshes=numbers.get(AuditAction.GRANT_REFRESHED, 0),
            failed=numbers.get(AuditAction.REFRESH_FAILED, 0),
        )
        hour += timedelta(hours=1)
