"""`/v1/providers`: the catalogue, with the tenant's own definitions in place of its entries.

Resolves the definition that an integration uses: the tenant's own before the catalogue's. An admin proposes a
tenant's definition, approves or rejects it, and rolls it back.
"""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field, field_validator
from starlette.responses import Response

from evergrant_server.access.approvals import dangerous, is_second_admin
from evergrant_server.access.context import spec_by_name
from evergrant_server.api.http.call import (
    AdminCall,
    AdminCommand,
    ApiCall,
    AuditorCall,
    Call,
    CommandResponse,
)
from evergrant_server.api.http.models import MAX_INTEGER, Body, Page, Slug, Text, View
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.definition import CheckResult, Definition, DefinitionState, Rollout
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import DefinitionId, new_id
from evergrant_server.core.integrations import Integration, IntegrationState
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.integrations import DefinitionDecided, RollBackDefinition, RolloutStart
from evergrant_server.core.messages.names import SignalName, definition_rollout_workflow_id
from evergrant_server.core.outbox import OutboxKind, OutboxMessage, outbox_message
from evergrant_server.core.text import is_storable
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction
from providers.definition.registry import Registry, parse_definition
from providers.definition.schema import ProviderSpec
from providers.definition.templates import integration_endpoints

router = APIRouter(tags=["providers"])

Version = Annotated[int, Field(ge=1, le=MAX_INTEGER)]


@router.get("/v1/providers")
async def list_providers(call: Call) -> Page[dict[str, Any]]:
    """All providers, sorted by name."""
    specs = {spec.name: spec for spec in call.api.registry.all()}
    async with call.api.store.read() as tx:
        for name in await tx.definitions.names(call.tenant):
            versions = await tx.definitions.serving(call.tenant, name)
            if name in specs or versions:
                specs[name] = call.api.registry.serving(name, versions)
    return Page(items=[_summary(specs[name]) for name in sorted(specs)])


@router.get("/v1/providers/{provider}")
async def get_provider(provider: str, call: Call) -> dict[str, Any]:
    """A provider's definition, without members that have their default."""
    async with call.api.store.read() as tx:
        spec = await spec_by_name(tx, call.api.registry, call.tenant, provider)
    return {**_summary(spec), "definition": spec.model_dump(mode="json", exclude_defaults=True)}


def _summary(spec: ProviderSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "display_name": spec.display_name,
        "categories": list(spec.categories),
        "docs_url": spec.docs_url,
        "version": spec.version,
        "needs_issuer": spec.discovery and spec.protected_resource is None,
        "params": {name: rule.model_dump(mode="json") for name, rule in spec.template_params.items()},
        "default_scopes": list(spec.default_scopes),
        "openid": spec.issuer is not None and spec.userinfo_endpoint is not None,
        "client_auth": spec.client_auth.value,
        "revocation": spec.has_revocation,
        "down_scoping": spec.down_scoping,
    }


async def consent_spec(
    tx: Transaction, registry: Registry, integration: Integration, consent: Consent
) -> ProviderSpec:
    """The definition that the consent's attempt started with, while it serves, else the newest one.

    Raises Failure PROVIDER_UNKNOWN.
    """
    versions = await tx.definitions.serving(integration.tenant, integration.provider)
    answering = [
        spec for spec, _ in registry.candidates(integration.provider, versions, consent.connection_id)
    ]
    if consent.token_endpoint is None:
        return answering[0]
    left_with = (
        spec
        for spec in answering
        if integration_endpoints(spec, integration).token_endpoint == consent.token_endpoint
    )
    return next(left_with, answering[0])


def require_ready(integration: Integration) -> None:
    """Raise Failure DISCOVERY_FAILED unless the integration's endpoints are known, and CLIENT_REJECTED
    while it has no client."""
    if integration.lacks_client:
        raise Failure(ErrorCode.CLIENT_REJECTED, integration.problem or "", integration=integration.name)
    if integration.state is IntegrationState.FAILED:
        raise Failure(ErrorCode.DISCOVERY_FAILED, integration.problem or "", integration=integration.name)
    if integration.state is IntegrationState.DISCOVERING:
        raise Failure(
            ErrorCode.DISCOVERY_FAILED,
            "The issuer's metadata has not been read yet.",
            retry_after=5.0,
            integration=integration.name,
        )


class DefinitionBody(Body):
    """`definition` has the members of a catalogue file, as JSON."""

    definition: dict[str, Any]
    rollout: Rollout = Rollout()

    @field_validator("definition")
    @classmethod
    def _whole_texts(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not is_storable(value):
            raise ValueError("a text contains NUL or an unpaired surrogate")
        return value


class DecisionBody(Body):
    """`accept_hosts`: the approver accepts that secrets and tokens would be sent to new hosts."""

    version: Version
    reason: Text | None = None
    accept_hosts: bool = False


class RollBackBody(Body):
    version: Version
    reason: Text = "requested"


class DefinitionView(View):
    """`share` of the connections use this version; `succeeded` and `failed` count its stage."""

    id: str
    name: str
    version: int
    state: DefinitionState
    share: float
    rollout: Rollout
    findings: tuple[CheckResult, ...]
    succeeded: int
    failed: int
    proposed_by: str
    decided_by: str | None
    approved: bool | None
    reason: str | None
    document: dict[str, Any]
    created_at: datetime
    changed_at: datetime
    revision: int


@router.post("/v1/providers", status_code=201, response_model=DefinitionView)
async def propose_definition(body: DefinitionBody, call: AdminCommand) -> Response:
    """Propose a definition of a new provider, or one that replaces the catalogue's.

    A worker checks it. No connection uses it before an admin approves it.
    """
    spec = parse_definition(body.definition, "the proposal")

    async def write(tx: Transaction) -> CommandResponse:
        now = call.now
        # read first: who proposes at the same moment has the same number, which only one of them gets
        version = await tx.definitions.next_version(call.tenant, spec.name)
        under_way = await tx.definitions.open_version(call.tenant, spec.name)
        if under_way is not None:
            problem = f"Version {under_way.version} is {under_way.state.value}: decide or roll it back first."
            raise Failure(ErrorCode.ALREADY_EXISTS, problem, field="definition")
        definition = Definition(
            tenant=call.tenant,
            id=DefinitionId(new_id("def")),
            name=spec.name,
            version=version,
            document=body.definition,
            rollout=body.rollout,
            proposed_by=call.context.by,
            created_at=now,
            changed_at=now,
        )
        await tx.definitions.add(definition)
        await tx.outbox.add(rollout_start_message(definition, call.context, now))
        detail = {"provider": definition.name, "version": definition.version}
        await call.record(tx, AuditAction.DEFINITION_PROPOSED, definition.id, **detail)
        return CommandResponse.of(DefinitionView.of(definition), 201)

    return await call.run(body, write)


@router.get("/v1/definitions")
async def list_definitions(call: AuditorCall) -> Page[DefinitionView]:
    """The newest version of each provider that the tenant has a definition of, sorted by name."""
    async with call.api.store.read() as tx:
        names = await tx.definitions.names(call.tenant)
        newest = [(await tx.definitions.versions(call.tenant, name))[0] for name in names]
    return Page(items=[DefinitionView.of(version) for version in newest])


@router.get("/v1/providers/{provider}/versions")
async def list_definition_versions(provider: Slug, call: AuditorCall) -> Page[DefinitionView]:
    """The tenant's versions, newest first, with check results and decision."""
    async with call.api.store.read() as tx:
        versions = await tx.definitions.versions(call.tenant, provider)
    if not versions:
        raise Failure(ErrorCode.NOT_FOUND, "This tenant has no definition of this provider.")
    return Page(items=[DefinitionView.of(version) for version in versions])


@router.post("/v1/providers/{provider}/approve", response_model=DefinitionView)
@dangerous(
    "always; with EVERGRANT_FOUR_EYES the proposer is the first admin, and can't approve", second=False
)
async def approve_definition(provider: Slug, body: DecisionBody, call: AdminCall) -> DefinitionView:
    """Approve a checked version: live at once for a new provider, in stages when it replaces another."""
    call.require_step_up()
    return await _save_decision(call, provider, body, approved=True)


@router.post("/v1/providers/{provider}/reject", response_model=DefinitionView)
async def reject_definition(provider: Slug, body: DecisionBody, call: AdminCall) -> DefinitionView:
    """Reject a checked version, with a reason for the proposer."""
    if body.reason is None:
        raise invalid_request("reason", "Say why.")
    return await _save_decision(call, provider, body, approved=False)


@router.post("/v1/providers/{provider}/roll-back", response_model=DefinitionView)
async def roll_back_definition(provider: Slug, body: RollBackBody, call: AdminCall) -> DefinitionView:
    """Return to the version before a staged one. After the last stage, propose the older version."""

    async def write(tx: Transaction) -> Definition:
        definition = require_found(await tx.definitions.version(call.tenant, provider, body.version))
        if definition.state is not DefinitionState.STAGED:
            raise invalid_request("version", f"It is {definition.state.value}, not staged.")
        message = RollBackDefinition(reason=body.reason, context=call.context)
        await signal_rollout(tx, definition, SignalName.ROLL_BACK_DEFINITION, message, call.now)
        return definition

    definition = await call.write(write)
    return DefinitionView.of(definition)


async def _save_decision(
    call: ApiCall, provider: str, body: DecisionBody, *, approved: bool
) -> DefinitionView:
    """Store the decision, which the workflow carries out. Raises Failure INVALID_REQUEST for a second one."""

    async def write(tx: Transaction) -> Definition:
        now = call.now
        definition = require_found(await tx.definitions.version(call.tenant, provider, body.version))
        decidable = definition.state is DefinitionState.WAITING or (
            definition.state is DefinitionState.CHECKING
            and not approved  # rejecting ends a check that doesn't finish
        )
        if not decidable or definition.approved is not None:
            why = f"The version is {definition.state.value}: there is no decision to make."
            raise invalid_request("version", why)
        if (
            approved
            and call.api.settings.four_eyes
            and not await is_second_admin(tx, call, definition.proposed_by)
        ):
            why = "The proposer can't approve it, nor can an agent or who answers for one that proposed it."
            raise Failure(ErrorCode.NOT_PERMITTED, f"{why} (EVERGRANT_FOUR_EYES)")
        if approved and definition.changes_secret_hosts and not body.accept_hosts:
            why = "Secrets and tokens would be sent to new hosts: see the check results, and accept them."
            raise invalid_request("accept_hosts", why)
        decided = definition.with_decision(call.context.by, body.reason, now, approved=approved)
        saved = await tx.definitions.replace(decided, expected=definition.revision)
        message = DefinitionDecided(context=call.context)
        await signal_rollout(tx, saved, SignalName.DEFINITION_DECIDED, message, now)
        if approved:
            detail = {"provider": saved.name, "version": saved.version, "reason": body.reason}
            await call.record(tx, AuditAction.DEFINITION_APPROVED, saved.id, **detail)
        return saved

    saved = await call.write(write)
    return DefinitionView.of(saved)


async def signal_rollout(
    tx: Transaction,
    definition: Definition,
    name: str,
    message: DefinitionDecided | RollBackDefinition,
    now: datetime,
) -> None:
    """Signal the rollout workflow, and start it first in case Temporal has lost it."""
    await tx.outbox.add(rollout_start_message(definition, message.context, now))
    target = definition_rollout_workflow_id(definition.tenant, definition.id)
    await tx.outbox.add(outbox_message(definition.tenant, OutboxKind.SIGNAL, target, message, now, name=name))


def rollout_start_message(definition: Definition, context: RequestContext, now: datetime) -> OutboxMessage:
    order = RolloutStart(
        tenant=definition.tenant,
        definition_id=definition.id,
        provider=definition.name,
        check_interval_s=definition.rollout.check_interval_s,
        context=context,
    )
    target = definition_rollout_workflow_id(definition.tenant, definition.id)
    return outbox_message(definition.tenant, OutboxKind.START_DEFINITION_ROLLOUT, target, order, now)
