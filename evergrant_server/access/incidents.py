"""What API and console write for incidents: the order, a pause; and what a person has to do, as a plan.

An incident is ordered in one transaction, in which the app of a breach is disabled, too. A worker carries it
out: see `activities.incidents`.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from evergrant_server import audit
from evergrant_server.access.transactions import record
from evergrant_server.core.access import App
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.incidents import Incident, IncidentKind, ItemOutcome
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import IncidentId, Tenant, new_id
from evergrant_server.core.integrations import Integration, Rotation
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.outbox import incident_message
from evergrant_server.store import Transaction
from evergrant_server.store.connections.incidents import CountedIntegration
from providers.definition.registry import Registry
from providers.definition.templates import client_auth_of, integration_endpoints

_PAGE = 200
_SECRETS = (AuditAction.SECRET_ROTATED, AuditAction.CLIENT_REGISTERED)
_ROOTS = "python -m evergrant_server keys rotate PURPOSE; then: keys rewrap PURPOSE (lease, refresh, intake)"

_COPIES = "python -m evergrant_server keys export-api FILE; likewise export-gateway"


@dataclass(frozen=True)
class Scope:
    """Which connections: all that it names has to be true of one; nothing: the tenant's."""

    tenant: Tenant
    kind: IncidentKind
    integration: str | None
    app: str | None
    since: datetime | None
    until: datetime | None

    @property
    def name(self) -> str:
        """What a person repeats to confirm the order."""
        return self.integration or self.app or self.tenant


class Doer(StrEnum):
    """Who does a step."""

    EVERGRANT = "evergrant"
    OPERATOR = "operator"
    ADMIN = "admin"
    SUBJECTS = "subjects"


@dataclass(frozen=True)
class Step:
    """What follows, in this order. `connections`: how many it is about; `done` None: it can't be seen."""

    by: Doer
    text: str
    command: str | None = None
    connections: int | None = None
    done: bool | None = None


@dataclass(frozen=True)
class IncidentPlan:
    """What an incident of this scope would be about, and what would follow. `exact` False: the connections
    are at most as many, since the leases of a time are counted when the incident begins."""

    connections: int
    exact: bool
    integrations: list["PlannedIntegration"]
    steps: list[Step]


@dataclass(frozen=True)
class PlannedIntegration:
    """`revokes`: its provider has a revocation endpoint; `replaces`: a refresh ends the refresh token that it
    uses; `secret`: its client has a secret that may have leaked."""

    integration: str
    provider: str
    connections: int
    revokes: bool
    replaces: bool
    secret: bool


async def named_app(tx: Transaction, scope: Scope) -> App | None:
    """The app that the scope names. Raises Failure NOT_FOUND: there is none."""
    if scope.app is None:
        return None
    app = await tx.access.app_by_name(scope.tenant, scope.app)
    if app is None:
        raise Failure(ErrorCode.NOT_FOUND, "There is no such app. See: evergrant apps ls")
    return app


async def plan(tx: Transaction, registry: Registry, scope: Scope) -> IncidentPlan:
    """What would follow. Changes nothing. Raises Failure NOT_FOUND."""
    app = await named_app(tx, scope)
    name = scope.integration
    if name is not None and await tx.integrations.by_name(scope.tenant, name) is None:
        raise Failure(ErrorCode.NOT_FOUND, "There is no such integration. See: evergrant integrations ls")
    app_id = None if app is None else app.id
    since = scope.since or scope.until
    counts = await tx.incident_items.counts(scope.tenant, scope.integration, app_id, scope.since)
    planned = [await _planned(tx, registry, scope.tenant, count) for count in counts]
    total = sum(count.connections for count in counts)
    breach = scope.kind is IncidentKind.BREACH
    steps = _steps_of_breach(scope, planned, total) if breach else await _steps_of_leak(tx, scope, planned)
    return IncidentPlan(total, since is None, planned, steps)


async def _planned(
    tx: Transaction, registry: Registry, tenant: Tenant, count: CountedIntegration
) -> PlannedIntegration:
    integration = await tx.integrations.by_name(tenant, count.integration)
    if integration is None:
        return PlannedIntegration(*count, revokes=False, replaces=False, secret=False)
    replaces = integration.refresh.rotation in (Rotation.STRICT, Rotation.GRACE)
    revokes, secret = False, False
    try:
        versions = await tx.definitions.serving(tenant, integration.provider)
        spec = registry.serving(integration.provider, versions)
        revokes = integration_endpoints(spec, integration, {}).revocation_endpoint is not None
        secret = client_auth_of(spec, integration) != "none"
    except Failure:  # its definition is gone, or a connection's own facts fill its endpoints
        secret = True
    return PlannedIntegration(*count, revokes=revokes, replaces=replaces, secret=secret)


def _steps_of_breach(scope: Scope, planned: list[PlannedIntegration], total: int) -> list[Step]:
    unsupported = sum(each.connections for each in planned if not each.revokes)
    steps = [
        Step(Doer.EVERGRANT, "Stop each: from then on no token of it leaves", None, total),
        Step(
            Doer.EVERGRANT,
            "Revoke at the providers, the most recently used first, and destroy the keys",
            None,
            total - unsupported,
        ),
        Step(Doer.EVERGRANT, "Report what each provider has answered, signed"),
        Step(Doer.SUBJECTS, "Connect again", "evergrant connect INTEGRATION SUBJECT", total),
    ]
    if scope.app is not None:
        text = f"Disable the app {scope.app}: its requests are refused in every process"
        steps.insert(0, Step(Doer.EVERGRANT, text))
    if unsupported:
        text = "End at the provider by hand what it can't revoke: tokens stay valid until they expire"
        steps.insert(-1, Step(Doer.ADMIN, text, None, unsupported))
    return steps


async def _steps_of_leak(
    tx: Transaction, scope: Scope, planned: list[PlannedIntegration], since: datetime | None = None
) -> list[Step]:
    """`since`: when the incident was opened, to see what is done; None: it isn't."""
    total = sum(each.connections for each in planned)
    renewed = sum(each.connections for each in planned if each.replaces)
    copies = "Replace the copies of the key file on hosts of the API and of gateways"
    steps = [
        Step(Doer.OPERATOR, "Replace the roots: what leaked opens all that stands under them", _ROOTS),
        Step(Doer.OPERATOR, copies, _COPIES),
        Step(Doer.EVERGRANT, "New keys of the tenant; what stands under the older ones moves"),
    ]
    for each in planned:
        if each.secret:
            command = f"evergrant integrations rotate-secret {each.integration} --client-secret-file FILE"
            text = f"A new client secret for {each.integration}, from {each.provider}"
            done = None if since is None else await _has_new_secret(tx, scope.tenant, each.integration, since)
            steps.append(Step(Doer.ADMIN, text, command, each.connections, done))
    for webhook in await tx.webhooks.page(scope.tenant, None, _PAGE):
        command = f"evergrant webhooks rotate {webhook.name}"
        steps.append(Step(Doer.ADMIN, f"A new signing secret for the webhook {webhook.name}", command))
    text = "New keys of each connection, the most recently used first; older ones are destroyed"
    steps.append(Step(Doer.EVERGRANT, text, None, total))
    if renewed:
        text = "New tokens, by a refresh that ends the older refresh token"
        steps.append(Step(Doer.EVERGRANT, text, None, renewed))
    if total > renewed:
        text = "Consent again: nothing proves that the provider ends a refresh token that is used"
        steps.append(Step(Doer.SUBJECTS, text, "evergrant connections reauthorize ID", total - renewed))
    return steps


async def _has_new_secret(tx: Transaction, tenant: Tenant, name: str, since: datetime) -> bool:
    integration: Integration | None = await tx.integrations.by_name(tenant, name)
    if integration is None:
        return False
    return bool(await audit.newest_records(tx, tenant, integration.id, _SECRETS, since))


async def steps_left(tx: Transaction, registry: Registry, incident: Incident) -> list[Step]:
    """What a person has to do for an incident, and whether it is done, as far as it can be seen."""
    scope = Scope(
        incident.tenant, incident.kind, incident.integration, incident.app, incident.since, incident.until
    )
    if incident.kind is not IncidentKind.LEAK:
        unsupported = incident.outcomes.get(ItemOutcome.NOT_SUPPORTED, 0)
        unknown = incident.outcomes.get(ItemOutcome.UNKNOWN, 0)
        steps = [
            (Doer.ADMIN, "End at the provider by hand what it can't revoke", unsupported),
            (Doer.ADMIN, "Ask the provider about what it hasn't confirmed", unknown),
        ]
        if incident.kind is IncidentKind.BREACH:
            steps.append((Doer.SUBJECTS, "Connect again", incident.ended))
        handed = incident.outcomes.get(ItemOutcome.HANDED_OVER, 0)
        steps.append((Doer.SUBJECTS, "The new owner consents, with an account of their own", handed))
        return [Step(by, text, None, count) for by, text, count in steps if count]
    counts = await tx.incident_items.counts(scope.tenant, scope.integration, None, None)
    planned = [await _planned(tx, registry, scope.tenant, count) for count in counts]
    steps_of_leak = await _steps_of_leak(tx, scope, planned, incident.created_at)
    reconnect = incident.outcomes.get(ItemOutcome.RECONNECT, 0)
    left = [step for step in steps_of_leak if step.by in (Doer.OPERATOR, Doer.ADMIN)]
    if reconnect:
        left.append(Step(Doer.SUBJECTS, "Consent again", "evergrant connections reauthorize ID", reconnect))
    return left


async def open_incident(
    tx: Transaction, scope: Scope, reason: str, wait: timedelta, context: RequestContext, now: datetime
) -> Incident:
    """Write the order. The app of a breach is disabled with it."""
    app = await named_app(tx, scope)
    incident = Incident(
        tenant=scope.tenant,
        id=IncidentId(new_id("inc")),
        kind=scope.kind,
        integration=scope.integration,
        app=scope.app,
        app_id=None if app is None else app.id,
        since=scope.since,
        until=scope.until,
        reason=reason,
        by=context.by,
        created_at=now,
        waits_until=now + wait,
    )
    await tx.incidents.add(incident)
    await tx.outbox.add(incident_message(incident, context, now))
    if app is not None and not app.disabled:
        disabled = await tx.access.put_app(app.__replace__(disabled=True), expected=app.revision)
        await tx.agents.end_leases_of_sponsored(scope.tenant, disabled.id)
        detail = {"disabled": True, "return_to": list(app.return_to), "incident": incident.id}
        place = (tx, scope.tenant, AuditAction.APP_PUT, app.id, context, now)
        await record(*place, app=app.name, **detail)
    return incident


async def pause_incident(
    tx: Transaction, tenant: Tenant, id: str, context: RequestContext, now: datetime, *, paused: bool
) -> Incident:
    """Have an incident rest at the end of its page, or go on. Raises Failure NOT_FOUND, also for one that is
    done."""
    incident = await tx.incidents.get(tenant, IncidentId(id))
    if incident is None or incident.finished_at is not None:
        raise Failure(ErrorCode.NOT_FOUND, "No such incident is under way. See: evergrant incident ls")
    if incident.paused is not paused:
        changed = incident.__replace__(paused=paused, idle=0)
        incident = await tx.incidents.replace(changed, expected=incident.revision)
        place = (tx, tenant, AuditAction.INCIDENT_PAUSED, incident.id, context, now)
        await record(*place, paused=paused)
    await tx.outbox.add(incident_message(incident, context, now))
    return incident
