"""`/v1/providers`, what a tenant brings: propose a definition, see what was found, decide, roll back."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field, field_validator
from starlette.responses import Response

from evergrant_server import audit
from evergrant_server.api.guards import By, IdempotencyKey, TenantAdmin, With
from evergrant_server.api.idempotency import Answer, Once
from evergrant_server.api.parts import Parts
from evergrant_server.api.shapes import LARGEST, Body, Slug, Text
from evergrant_server.api.transactions import committed
from evergrant_server.api.views import Page, View
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.definition import Definition, DefinitionState, Finding, Rollout
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.ids import DefinitionId, new_id, onboarding_workflow_id
from evergrant_server.core.messages import Asked, Message
from evergrant_server.core.onboarding import (
    SIGNAL_DECIDED,
    SIGNAL_ROLL_BACK,
    Decided,
    OnboardingStart,
    RollBack,
)
from evergrant_server.core.outbox import OutboxKind, OutboxMessage, written
from evergrant_server.core.text import all_whole
from evergrant_server.store import Tx
from providers.registry import spec_of

router = APIRouter(tags=["providers"])

Version = Annotated[int, Field(ge=1, le=LARGEST)]


class ProposeBody(Body):
    """`definition` is what a file of the catalogue says, as JSON."""

    definition: dict[str, Any]
    rollout: Rollout = Rollout()

    @field_validator("definition")
    @classmethod
    def _whole_texts(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not all_whole(value):
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
    """`share` of the connections that this version answers for; `good` and `bad` count its stage."""

    id: str
    name: str
    version: int
    state: DefinitionState
    share: float
    rollout: Rollout
    findings: tuple[Finding, ...]
    good: int
    bad: int
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
async def propose(
    body: ProposeBody,
    request: Request,
    parts: With,
    caller: TenantAdmin,
    asked: By,
    key: IdempotencyKey = None,
) -> Response:
    """Propose a definition: of a provider of your own, or in place of the catalogue's.

    A worker checks it; nothing uses it before somebody approves it.
    """
    once = Once(request, caller, key, body)
    spec = spec_of(body.definition, "the proposal")

    async def write(tx: Tx) -> Answer:
        now = parts.clock.now()
        under_way = await tx.definitions.unfinished(caller.tenant, spec.name)
        if under_way is not None:
            what = f"Version {under_way.version} is {under_way.state.value}: decide or roll it back first."
            raise Failure(Code.ALREADY_EXISTS, what, field="definition")
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
        await tx.outbox.add(start(definition, asked, now))
        await _record(tx, definition, AuditAction.DEFINITION_PROPOSED, asked, now)
        return Answer.of(201, DefinitionView.of(definition))

    answer = await once.committed(parts, write)
    parts.relay.nudge()
    return answer.response()


@router.get("/v1/providers/{provider}/versions")
async def versions(provider: Slug, parts: With, caller: TenantAdmin) -> Page[DefinitionView]:
    """The versions of this tenant, the newest first, with what was found and decided."""
    async with parts.store.read() as tx:
        found = await tx.definitions.versions(caller.tenant, provider)
    if not found:
        raise Failure(Code.NOT_FOUND, "This tenant has brought no definition of it.")
    return Page(items=[DefinitionView.of(it) for it in found])


@router.post("/v1/providers/{provider}/approve", response_model=DefinitionView)
async def approve(
    provider: Slug, body: DecisionBody, parts: With, caller: TenantAdmin, asked: By
) -> DefinitionView:
    """Let a checked version in: at once when the provider is new, in stages when it replaces another."""
    return await _decided(parts, caller.tenant, provider, body, asked, approved=True)


@router.post("/v1/providers/{provider}/reject", response_model=DefinitionView)
async def reject(
    provider: Slug, body: DecisionBody, parts: With, caller: TenantAdmin, asked: By
) -> DefinitionView:
    """Turn a checked version down, with a reason for whoever proposed it."""
    if body.reason is None:
        raise Failure(Code.INVALID_REQUEST, "Say why.", field="reason")
    return await _decided(parts, caller.tenant, provider, body, asked, approved=False)


@router.post("/v1/providers/{provider}/roll-back", response_model=DefinitionView)
async def roll_back(
    provider: Slug, body: RollBackBody, parts: With, caller: TenantAdmin, asked: By
) -> DefinitionView:
    """Have the version before a staged one answer again. After its last stage, propose the older one."""

    async def write(tx: Tx) -> Definition:
        now = parts.clock.now()
        found = await _version(tx, caller.tenant, provider, body.version)
        if found.state is not DefinitionState.STAGED:
            raise Failure(Code.INVALID_REQUEST, f"It is {found.state.value}, not staged.", field="version")
        await tell(tx, found, SIGNAL_ROLL_BACK, RollBack(reason=body.reason, asked=asked), asked, now)
        return found

    found = await committed(parts.store, write)
    parts.relay.nudge()
    return DefinitionView.of(found)


async def _decided(
    parts: Parts, tenant: Any, provider: str, body: DecisionBody, asked: Asked, *, approved: bool
) -> DefinitionView:
    """Write the decision, which the workflow carries out. The first one counts."""

    async def write(tx: Tx) -> Definition:
        now = parts.clock.now()
        found = await _version(tx, tenant, provider, body.version)
        decidable = found.state is DefinitionState.WAITING or (
            found.state is DefinitionState.CHECKING and not approved  # a check that hangs ends here
        )
        if not decidable or found.approved is not None:
            raise Failure(
                Code.INVALID_REQUEST, f"It is {found.state.value}: nothing to decide.", field="version"
            )
        if approved and parts.settings.four_eyes and found.proposed_by == asked.by:
            raise Failure(Code.NOT_PERMITTED, "Whoever proposed it can't approve it: EVERGRANT_FOUR_EYES.")
        if approved and found.moves_secrets and not body.accept_hosts:
            why = "Client secrets and tokens would go to new hosts: see the finding, and accept them."
            raise Failure(Code.INVALID_REQUEST, why, field="accept_hosts")
        decided = found.decided(asked.by, body.reason, now, approved=approved)
        saved = await tx.definitions.replace(decided, expected=found.revision)
        await tell(tx, saved, SIGNAL_DECIDED, Decided(asked=asked), asked, now)
        if approved:
            await _record(tx, saved, AuditAction.DEFINITION_APPROVED, asked, now, reason=body.reason)
        return saved

    saved = await committed(parts.store, write)
    parts.relay.nudge()
    return DefinitionView.of(saved)


async def _version(tx: Tx, tenant: Any, provider: str, version: int) -> Definition:
    found = await tx.definitions.version(tenant, provider, version)
    if found is None:
        raise Failure(Code.NOT_FOUND)
    return found


async def tell(tx: Tx, definition: Definition, name: str, said: Message, asked: Asked, now: datetime) -> None:
    """Signal its workflow, and start it before in case Temporal has lost it."""
    await tx.outbox.add(start(definition, asked, now))
    await tx.outbox.add(_message(definition, OutboxKind.SIGNAL, name, said, now))


def start(definition: Definition, asked: Asked, now: datetime) -> OutboxMessage:
    order = OnboardingStart(
        tenant=definition.tenant,
        definition_id=definition.id,
        provider=definition.name,
        watch_s=definition.rollout.watch_s,
        asked=asked,
    )
    return _message(definition, OutboxKind.START_ONBOARDING, "", order, now)


def _message(
    definition: Definition, kind: OutboxKind, name: str, said: Message, now: datetime
) -> OutboxMessage:
    target = onboarding_workflow_id(definition.tenant, definition.id)
    return written(definition.tenant, kind, target, said, now, name=name)


async def _record(
    tx: Tx, it: Definition, action: AuditAction, asked: Asked, now: datetime, **detail: object
) -> None:
    entry = AuditEntry(
        tenant=it.tenant,
        at=now,
        action=action,
        object=it.id,
        asked=asked,
        detail={"provider": it.name, "version": it.version, **detail},
    )
    await audit.append(tx, entry)
