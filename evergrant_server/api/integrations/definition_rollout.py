"""`/v1/providers`: a tenant's own definitions, proposed, approved or rejected, and rolled back."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field, field_validator
from starlette.responses import Response

from evergrant_server.access.approvals import dangerous, is_second_admin
from evergrant_server.api.http.call import AdminCall, AdminCommand, ApiCall, AuditorCall, CommandResponse
from evergrant_server.api.http.models import MAX_INTEGER, Body, Page, Slug, Text, View
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.definition import CheckResult, Definition, DefinitionState, Rollout
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import DefinitionId, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.integrations import (
    DefinitionDecided,
    RollBackDefinition,
    RolloutStart,
)
from evergrant_server.core.messages.names import SignalName, definition_rollout_workflow_id
from evergrant_server.core.outbox import OutboxKind, OutboxMessage, outbox_message
from evergrant_server.core.text import is_storable
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction
from providers.definition.registry import parse_definition

router = APIRouter(tags=["providers"])

Version = Annotated[int, Field(ge=1, le=MAX_INTEGER)]


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
        under_way = await tx.definitions.open_version(call.tenant, spec.name)
        if under_way is not None:
            what = f"Version {under_way.version} is {under_way.state.value}: decide or roll it back first."
            raise Failure(ErrorCode.ALREADY_EXISTS, what, field="definition")
        definition = Definition(
            tenant=call.tenant,
            id=DefinitionId(new_id("def")),
            name=spec.name,
            version=await tx.definitions.next_version(call.tenant, spec.name),
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


@router.get("/v1/providers/{provider}/versions")
async def list_definition_versions(provider: Slug, call: AuditorCall) -> Page[DefinitionView]:
    """The tenant's versions, newest first, with check results and decision."""
    async with call.api.store.read() as tx:
        found = await tx.definitions.versions(call.tenant, provider)
    if not found:
        raise Failure(ErrorCode.NOT_FOUND, "This tenant has no definition of this provider.")
    return Page(items=[DefinitionView.of(it) for it in found])


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
        found = require_found(await tx.definitions.version(call.tenant, provider, body.version))
        if found.state is not DefinitionState.STAGED:
            raise invalid_request("version", f"It is {found.state.value}, not staged.")
        message = RollBackDefinition(reason=body.reason, context=call.context)
        await signal_rollout(tx, found, SignalName.ROLL_BACK_DEFINITION, message, call.now)
        return found

    found = await call.write(write)
    return DefinitionView.of(found)


async def _save_decision(
    call: ApiCall, provider: str, body: DecisionBody, *, approved: bool
) -> DefinitionView:
    """Store the decision, which the workflow carries out. Raises Failure INVALID_REQUEST for a second one."""

    async def write(tx: Transaction) -> Definition:
        now = call.now
        found = require_found(await tx.definitions.version(call.tenant, provider, body.version))
        decidable = found.state is DefinitionState.WAITING or (
            found.state is DefinitionState.CHECKING
            and not approved  # rejecting ends a check that doesn't finish
        )
        if not decidable or found.approved is not None:
            why = f"The version is {found.state.value}: there is no decision to make."
            raise invalid_request("version", why)
        if (
            approved
            and call.api.settings.four_eyes
            and not await is_second_admin(tx, call, found.proposed_by)
        ):
            why = "The proposer can't approve it, nor can an agent or who answers for one that proposed it."
            raise Failure(ErrorCode.NOT_PERMITTED, f"{why} (EVERGRANT_FOUR_EYES)")
        if approved and found.changes_secret_hosts and not body.accept_hosts:
            why = "Secrets and tokens would be sent to new hosts: see the check results, and accept them."
            raise invalid_request("accept_hosts", why)
        decided = found.with_decision(call.context.by, body.reason, now, approved=approved)
        saved = await tx.definitions.replace(decided, expected=found.revision)
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
