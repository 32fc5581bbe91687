"""`/v1/providers`: a tenant's own definitions, proposed, approved or rejected, and rolled back."""

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from evergrant_server.api.http.audit_records import record
from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.dependencies import (
    ApiDep,
    ContextDep,
    IdempotencyKey,
    TenantAdminDep,
)
from evergrant_server.api.http.idempotency import CommandResponse, IdempotentCommand
from evergrant_server.api.http.problems import require_found
from evergrant_server.api.http.requests import Slug
from evergrant_server.api.http.responses import Page
from evergrant_server.api.http.transactions import run_transaction
from evergrant_server.api.integrations.definition_models import (
    DecisionBody,
    DefinitionBody,
    DefinitionView,
    RollBackBody,
)
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.definition import Definition, DefinitionState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import DefinitionId, new_id
from evergrant_server.core.messages.base import (
    Message,
    RequestContext,
    SignalName,
    definition_rollout_workflow_id,
)
from evergrant_server.core.messages.definition_rollout import (
    DefinitionDecided,
    RollBackDefinition,
    RolloutStart,
)
from evergrant_server.core.outbox import OutboxKind, OutboxMessage, outbox_message
from evergrant_server.store import Transaction
from providers.definition.parsing import parse_definition

router = APIRouter(tags=["providers"])


@router.post("/v1/providers", status_code=201, response_model=DefinitionView)
async def propose_definition(
    body: DefinitionBody,
    request: Request,
    api: ApiDep,
    caller: TenantAdminDep,
    context: ContextDep,
    key: IdempotencyKey = None,
) -> Response:
    """Propose a definition of a new provider, or one that replaces the catalogue's.

    A worker checks it. No connection uses it before an admin approves it.
    """
    command = IdempotentCommand(request, caller, key, body)
    spec = parse_definition(body.definition, "the proposal")

    async def write(tx: Transaction) -> CommandResponse:
        now = api.clock.now()
        under_way = await tx.definitions.open_version(caller.tenant, spec.name)
        if under_way is not None:
            what = f"Version {under_way.version} is {under_way.state.value}: decide or roll it back first."
            raise Failure(ErrorCode.ALREADY_EXISTS, what, field="definition")
        definition = Definition(
            tenant=caller.tenant,
            id=DefinitionId(new_id("def")),
            name=spec.name,
            version=await tx.definitions.next_version(caller.tenant, spec.name),
            document=body.definition,
            rollout=body.rollout,
            proposed_by=context.by,
            created_at=now,
            changed_at=now,
        )
        await tx.definitions.add(definition)
        await tx.outbox.add(rollout_start_message(definition, context, now))
        await _record(tx, definition, AuditAction.DEFINITION_PROPOSED, context, now)
        return CommandResponse.from_view(201, DefinitionView.of(definition))

    return (await command.run(api, write)).response()


@router.get("/v1/providers/{provider}/versions")
async def list_definition_versions(
    provider: Slug, api: ApiDep, caller: TenantAdminDep
) -> Page[DefinitionView]:
    """The tenant's versions, newest first, with check results and decision."""
    async with api.store.read() as tx:
        found = await tx.definitions.versions(caller.tenant, provider)
    if not found:
        raise Failure(ErrorCode.NOT_FOUND, "This tenant has no definition of this provider.")
    return Page(items=[DefinitionView.of(it) for it in found])


@router.post("/v1/providers/{provider}/approve", response_model=DefinitionView)
async def approve_definition(
    provider: Slug,
    body: DecisionBody,
    api: ApiDep,
    caller: TenantAdminDep,
    context: ContextDep,
) -> DefinitionView:
    """Approve a checked version: live at once for a new provider, in stages when it replaces another."""
    return await _save_decision(api, caller.tenant, provider, body, context, approved=True)


@router.post("/v1/providers/{provider}/reject", response_model=DefinitionView)
async def reject_definition(
    provider: Slug,
    body: DecisionBody,
    api: ApiDep,
    caller: TenantAdminDep,
    context: ContextDep,
) -> DefinitionView:
    """Reject a checked version, with a reason for the proposer."""
    if body.reason is None:
        raise Failure(ErrorCode.INVALID_REQUEST, "Say why.", field="reason")
    return await _save_decision(api, caller.tenant, provider, body, context, approved=False)


@router.post("/v1/providers/{provider}/roll-back", response_model=DefinitionView)
async def roll_back_definition(
    provider: Slug,
    body: RollBackBody,
    api: ApiDep,
    caller: TenantAdminDep,
    context: ContextDep,
) -> DefinitionView:
    """Return to the version before a staged one. After the last stage, propose the older version."""

    async def write(tx: Transaction) -> Definition:
        now = api.clock.now()
        found = await _require_version(tx, caller.tenant, provider, body.version)
        if found.state is not DefinitionState.STAGED:
            raise Failure(
                ErrorCode.INVALID_REQUEST, f"It is {found.state.value}, not staged.", field="version"
            )
        await signal_rollout(
            tx,
            found,
            SignalName.ROLL_BACK_DEFINITION,
            RollBackDefinition(reason=body.reason, context=context),
            context,
            now,
        )
        return found

    found = await run_transaction(api.store, write)
    api.relay.notify()
    return DefinitionView.of(found)


async def _save_decision(
    api: ApiContext,
    tenant: Any,
    provider: str,
    body: DecisionBody,
    context: RequestContext,
    *,
    approved: bool,
) -> DefinitionView:
    """Store the decision, which the workflow carries out. Raises Failure INVALID_REQUEST for a second one."""

    async def write(tx: Transaction) -> Definition:
        now = api.clock.now()
        found = await _require_version(tx, tenant, provider, body.version)
        decidable = found.state is DefinitionState.WAITING or (
            found.state is DefinitionState.CHECKING
            and not approved  # rejecting ends a check that doesn't finish
        )
        if not decidable or found.approved is not None:
            raise Failure(
                ErrorCode.INVALID_REQUEST,
                f"The version is {found.state.value}: there is no decision to make.",
                field="version",
            )
        if approved and api.settings.four_eyes and found.proposed_by == context.by:
            raise Failure(ErrorCode.NOT_PERMITTED, "The proposer can't approve it: EVERGRANT_FOUR_EYES.")
        if approved and found.changes_secret_hosts and not body.accept_hosts:
            why = "Secrets and tokens would be sent to new hosts: see the check results, and accept them."
            raise Failure(ErrorCode.INVALID_REQUEST, why, field="accept_hosts")
        decided = found.with_decision(context.by, body.reason, now, approved=approved)
        saved = await tx.definitions.replace(decided, expected=found.revision)
        await signal_rollout(
            tx,
            saved,
            SignalName.DEFINITION_DECIDED,
            DefinitionDecided(context=context),
            context,
            now,
        )
        if approved:
            await _record(tx, saved, AuditAction.DEFINITION_APPROVED, context, now, reason=body.reason)
        return saved

    saved = await run_transaction(api.store, write)
    api.relay.notify()
    return DefinitionView.of(saved)


async def _require_version(tx: Transaction, tenant: Any, provider: str, version: int) -> Definition:
    return require_found(await tx.definitions.version(tenant, provider, version))


async def signal_rollout(
    tx: Transaction,
    definition: Definition,
    name: str,
    message: Message,
    context: RequestContext,
    now: datetime,
) -> None:
    """Signal the rollout workflow, and start it first in case Temporal has lost it."""
    await tx.outbox.add(rollout_start_message(definition, context, now))
    await tx.outbox.add(_workflow_message(definition, OutboxKind.SIGNAL, name, message, now))


def rollout_start_message(definition: Definition, context: RequestContext, now: datetime) -> OutboxMessage:
    order = RolloutStart(
        tenant=definition.tenant,
        definition_id=definition.id,
        provider=definition.name,
        check_interval_s=definition.rollout.check_interval_s,
        context=context,
    )
    return _workflow_message(definition, OutboxKind.START_DEFINITION_ROLLOUT, "", order, now)


def _workflow_message(
    definition: Definition, kind: OutboxKind, name: str, message: Message, now: datetime
) -> OutboxMessage:
    target = definition_rollout_workflow_id(definition.tenant, definition.id)
    return outbox_message(definition.tenant, kind, target, message, now, name=name)


async def _record(
    tx: Transaction,
    it: Definition,
    action: AuditAction,
    context: RequestContext,
    now: datetime,
    **detail: object,
) -> None:
    await record(tx, it.tenant, action, it.id, context, now, provider=it.name, version=it.version, **detail)
