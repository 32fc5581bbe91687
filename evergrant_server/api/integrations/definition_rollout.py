"""`/v1/providers`, what a tenant brings: propose a definition, see what was found, decide, roll back."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field, field_validator
from starlette.responses import Response

from evergrant_server import audit
from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.dependencies import (
    ContextDep,
    IdempotencyKey,
    RequestContextDep,
    TenantAdminDep,
)
from evergrant_server.api.http.idempotency import CommandResponse, IdempotentCommand
from evergrant_server.api.http.requests import MAX_INTEGER, Body, Slug, Text
from evergrant_server.api.http.responses import Page, View
from evergrant_server.api.http.transactions import run_transaction
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.definition import CheckResult, Definition, DefinitionState, Rollout
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import DefinitionId, new_id
from evergrant_server.core.messages.base import Message, RequestContext
from evergrant_server.core.messages.definition_rollout import (
    DefinitionDecided,
    RollBackDefinition,
    RolloutStart,
)
from evergrant_server.core.messages.names import SignalName, definition_rollout_workflow_id
from evergrant_server.core.outbox import OutboxKind, OutboxMessage, outbox_message
from evergrant_server.core.text import is_storable
from evergrant_server.store import Transaction
from providers.definition.registry import parse_definition

router = APIRouter(tags=["providers"])

Version = Annotated[int, Field(ge=1, le=MAX_INTEGER)]


class DefinitionBody(Body):
    """`definition` is what a file of the catalogue says, as JSON."""

    definition: dict[str, Any]
    rollout: Rollout = Rollout()

    @field_validator("definition")
    @classmethod
    def _whole_texts(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not is_storable(value):
            raise ValueError("a text in it holds NUL, or half a character")
        return value


class DecisionBody(Body):
    """`accept_hosts`: whoever approves has seen that secrets and tokens would go to new hosts."""

    version: Version
    reason: Text | None = None
    accept_hosts: bool = False


class RollBackBody(Body):
    version: Version
    reason: Text = "asked for"


class DefinitionView(View):
    """`share` of the connections that this version answers for; `succeeded` and `failed` count its stage."""

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

    @classmethod
    def of(cls, definition: Definition) -> "DefinitionView":
        return cls(**definition.model_dump(exclude={"tenant"}))


@router.post("/v1/providers", status_code=201, response_model=DefinitionView)
async def propose_definition(
    body: DefinitionBody,
    request: Request,
    parts: ContextDep,
    caller: TenantAdminDep,
    asked: RequestContextDep,
    key: IdempotencyKey = None,
) -> Response:
    """Propose a definition: of a provider of your own, or in place of the catalogue's.

    A worker checks it; nothing uses it before somebody approves it.
    """
    once = IdempotentCommand(request, caller, key, body)
    spec = parse_definition(body.definition, "the proposal")

    async def write(tx: Transaction) -> CommandResponse:
        now = parts.clock.now()
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
            proposed_by=asked.by,
            created_at=now,
            changed_at=now,
        )
        await tx.definitions.add(definition)
        await tx.outbox.add(rollout_start_message(definition, asked, now))
        await _record(tx, definition, AuditAction.DEFINITION_PROPOSED, asked, now)
        return CommandResponse.from_view(201, DefinitionView.of(definition))

    answer = await once.run(parts, write)
    parts.relay.notify()
    return answer.response()


@router.get("/v1/providers/{provider}/versions")
async def list_definition_versions(
    provider: Slug, parts: ContextDep, caller: TenantAdminDep
) -> Page[DefinitionView]:
    """The versions of this tenant, the newest first, with what was found and decided."""
    async with parts.store.read() as tx:
        found = await tx.definitions.versions(caller.tenant, provider)
    if not found:
        raise Failure(ErrorCode.NOT_FOUND, "This tenant has brought no definition of it.")
    return Page(items=[DefinitionView.of(it) for it in found])


@router.post("/v1/providers/{provider}/approve", response_model=DefinitionView)
async def approve_definition(
    provider: Slug, body: DecisionBody, parts: ContextDep, caller: TenantAdminDep, asked: RequestContextDep
) -> DefinitionView:
    """Let a checked version in: at once when the provider is new, in stages when it replaces another."""
    return await _save_decision(parts, caller.tenant, provider, body, asked, approved=True)


@router.post("/v1/providers/{provider}/reject", response_model=DefinitionView)
async def reject_definition(
    provider: Slug, body: DecisionBody, parts: ContextDep, caller: TenantAdminDep, asked: RequestContextDep
) -> DefinitionView:
    """Turn a checked version down, with a reason for whoever proposed it."""
    if body.reason is None:
        raise Failure(ErrorCode.INVALID_REQUEST, "Say why.", field="reason")
    return await _save_decision(parts, caller.tenant, provider, body, asked, approved=False)


@router.post("/v1/providers/{provider}/roll-back", response_model=DefinitionView)
async def roll_back_definition(
    provider: Slug, body: RollBackBody, parts: ContextDep, caller: TenantAdminDep, asked: RequestContextDep
) -> DefinitionView:
    """Have the version before a staged one answer again. After its last stage, propose the older one."""

    async def write(tx: Transaction) -> Definition:
        now = parts.clock.now()
        found = await _require_version(tx, caller.tenant, provider, body.version)
        if found.state is not DefinitionState.STAGED:
            raise Failure(
                ErrorCode.INVALID_REQUEST, f"It is {found.state.value}, not staged.", field="version"
            )
        await signal_rollout(
            tx,
            found,
            SignalName.ROLL_BACK_DEFINITION,
            RollBackDefinition(reason=body.reason, context=asked),
            asked,
            now,
        )
        return found

    found = await run_transaction(parts.store, write)
    parts.relay.notify()
    return DefinitionView.of(found)


async def _save_decision(
    parts: ApiContext,
    tenant: Any,
    provider: str,
    body: DecisionBody,
    asked: RequestContext,
    *,
    approved: bool,
) -> DefinitionView:
    """Write the decision, which the workflow carries out. The first one counts."""

    async def write(tx: Transaction) -> Definition:
        now = parts.clock.now()
        found = await _require_version(tx, tenant, provider, body.version)
        decidable = found.state is DefinitionState.WAITING or (
            found.state is DefinitionState.CHECKING and not approved  # a check that hangs ends here
        )
        if not decidable or found.approved is not None:
            raise Failure(
                ErrorCode.INVALID_REQUEST, f"It is {found.state.value}: nothing to decide.", field="version"
            )
        if approved and parts.settings.four_eyes and found.proposed_by == asked.by:
            raise Failure(
                ErrorCode.NOT_PERMITTED, "Whoever proposed it can't approve it: EVERGRANT_FOUR_EYES."
            )
        if approved and found.changes_secret_hosts and not body.accept_hosts:
            why = "Client secrets and tokens would go to new hosts: see the finding, and accept them."
            raise Failure(ErrorCode.INVALID_REQUEST, why, field="accept_hosts")
        decided = found.with_decision(asked.by, body.reason, now, approved=approved)
        saved = await tx.definitions.replace(decided, expected=found.revision)
        await signal_rollout(
            tx, saved, SignalName.DEFINITION_DECIDED, DefinitionDecided(context=asked), asked, now
        )
        if approved:
            await _record(tx, saved, AuditAction.DEFINITION_APPROVED, asked, now, reason=body.reason)
        return saved

    saved = await run_transaction(parts.store, write)
    parts.relay.notify()
    return DefinitionView.of(saved)


async def _require_version(tx: Transaction, tenant: Any, provider: str, version: int) -> Definition:
    found = await tx.definitions.version(tenant, provider, version)
    if found is None:
        raise Failure(ErrorCode.NOT_FOUND)
    return found


async def signal_rollout(
    tx: Transaction, definition: Definition, name: str, said: Message, asked: RequestContext, now: datetime
) -> None:
    """Signal its workflow, and start it before in case Temporal has lost it."""
    await tx.outbox.add(rollout_start_message(definition, asked, now))
    await tx.outbox.add(_workflow_message(definition, OutboxKind.SIGNAL, name, said, now))


def rollout_start_message(definition: Definition, asked: RequestContext, now: datetime) -> OutboxMessage:
    order = RolloutStart(
        tenant=definition.tenant,
        definition_id=definition.id,
        provider=definition.name,
        check_interval_s=definition.rollout.check_interval_s,
        context=asked,
    )
    return _workflow_message(definition, OutboxKind.START_DEFINITION_ROLLOUT, "", order, now)


def _workflow_message(
    definition: Definition, kind: OutboxKind, name: str, said: Message, now: datetime
) -> OutboxMessage:
    target = definition_rollout_workflow_id(definition.tenant, definition.id)
    return outbox_message(definition.tenant, kind, target, said, now, name=name)


async def _record(
    tx: Transaction,
    it: Definition,
    action: AuditAction,
    asked: RequestContext,
    now: datetime,
    **detail: object,
) -> None:
    entry = AuditEntry(
        tenant=it.tenant,
        at=now,
        action=action,
        object=it.id,
        context=asked,
        detail={"provider": it.name, "version": it.version, **detail},
    )
    await audit.append(tx, entry)
