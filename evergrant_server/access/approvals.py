"""Dangerous commands: people need a login of moments ago; with EVERGRANT_FOUR_EYES a second admin approves.

A route declares itself with `dangerous`, and asks in the transaction of its command, once it knows that the
content is dangerous. The second admin approves what the command resolves to (ids, revisions, issuers,
endpoints), which is compared again in the transaction that carries it out (ADR 0067). The first app sends its
command again afterwards.
"""

import functools
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

from pydantic import BaseModel

from evergrant_server.access.judged_request import JudgedRequest
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.decisions import Approval
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ApprovalId, derived_id
from evergrant_server.core.secret import Secret
from evergrant_server.policy import PermitQuestion, Target, decide
from evergrant_server.store import Transaction

P = ParamSpec("P")
T = TypeVar("T")

APPROVAL_TTL = timedelta(days=1)
_MARK = "__dangerous__"


@dataclass(frozen=True)
class Danger:
    """What of a route's commands is dangerous. `second`: with EVERGRANT_FOUR_EYES another admin approves it;
    else it is itself a decision about what another one asked for, or only ends something."""

    content: str
    second: bool = True


def dangerous(
    content: str, *, second: bool = True
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """Declare that commands of a route are dangerous.

    The route raises Failure APPROVAL_REQUIRED or APPROVAL_OUTDATED, once the approval that it waits for is
    stored.
    """

    def declared(route: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        @functools.wraps(route)
        async def answer(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return await route(*args, **kwargs)
            except _NotApproved as waiting:
                command = waiting.command
            raise await command.call.write(command.request)

        setattr(answer, _MARK, Danger(content, second))
        return answer

    return declared


def danger_of(route: Callable[..., Any]) -> Danger | None:
    """What the route declares of its commands; None: they aren't dangerous."""
    return getattr(route, _MARK, None)


async def use_approval(
    tx: Transaction,
    call: JudgedRequest,
    sent: BaseModel | None,
    resolves_to: Mapping[str, object] | None = None,
) -> dict[str, str]:
    """Use up the approval of this command, and return who gave it, for its audit record.

    `sent` is the body without secrets; `resolves_to` is JSON: what its names stand for in this transaction.
    To be called in the transaction of a `dangerous` route. Empty without EVERGRANT_FOUR_EYES, and for a dry
    run, which asks nobody. Raises Failure STEP_UP_REQUIRED.
    """
    four_eyes = call.api.settings.four_eyes
    if call.dry_run is not None:
        if four_eyes:
            call.dry_run.note_approval()
        return {}
    call.require_step_up()
    if not four_eyes:
        return {}
    command = _Command(call, sent, json.loads(json.dumps(resolves_to or {})))
    approval = await tx.approvals.get(call.tenant, command.approval_id)
    if approval is None or approval.approved_by is None or not await _counts(tx, call, approval):
        raise _NotApproved(command)
    used = approval.__replace__(used_at=call.now)
    await tx.approvals.put(used, expected=approval.revision)
    # by its own id, so that a row from before can't be used again: before the command's own record, and so
    # before rows that it changes, which on PostgreSQL may cost a second try
    await call.record(tx, AuditAction.APPROVAL_USED, approval.id, command=approval.command)
    return {"approved_by": approval.approved_by}


async def is_second_admin(tx: Transaction, call: JudgedRequest, by: str) -> bool:
    """Whether the caller, who holds `admin`, is another one than `by`: neither the same, nor an agent, nor
    who answers for the agent that `by` is."""
    if call.context.by == by or call.caller.app.is_agent:
        return False
    kind, _, name = by.partition(":")
    sender = await tx.access.app_by_name(call.tenant, name) if kind == "app" else None
    return sender is None or sender.sponsor != call.context.by


async def is_admin_app(tx: Transaction, call: JudgedRequest, name: str) -> bool:
    """Whether the app of this name holds `admin` for the whole tenant now, and is no agent."""
    app = await tx.access.app_by_name(call.tenant, name)
    if app is None or app.disabled or app.is_agent:
        return False
    permits = await tx.access.permits(call.tenant, app.id)
    return decide(permits, PermitQuestion(Target(), Action.ADMIN, call.now)).allowed


async def _counts(tx: Transaction, call: JudgedRequest, approval: Approval) -> bool:
    """Whether an approval can be used, and the app that gave it still holds `admin`. A person's sessions end
    by themselves, so an approval outlives them."""
    kind, _, name = (approval.approved_by or "").partition(":")
    return approval.is_open(call.now) and (kind != "app" or await is_admin_app(tx, call, name))


def fingerprint(call: JudgedRequest, value: Secret | str | None) -> str | None:
    """A keyed hash that stands for a secret in what a command resolves to: another secret has another one."""
    text = value.reveal() if isinstance(value, Secret) else value
    return None if text is None else call.api.ring.keyed_hash("approved secret", call.tenant, text)[:32]


@dataclass(frozen=True)
class _Command:
    """A command as a second admin approves it."""

    call: JudgedRequest
    sent: BaseModel | None
    resolves_to: dict[str, Any]

    @property
    def approval_id(self) -> ApprovalId:
        """The same for the same request of the same app, while it resolves to the same."""
        call, state = self.call, json.dumps(self.resolves_to, sort_keys=True)
        digest = hashlib.sha256(state.encode()).hexdigest()
        requested = call.request_hash(self.sent)
        return ApprovalId(derived_id("apr", call.tenant, call.caller.app.id, requested, digest))

    async def request(self, tx: Transaction) -> Failure:
        """Store that the command waits, unless that is stored. Returns the failure that says so."""
        call, id = self.call, self.approval_id
        wanted = Approval(
            tenant=call.tenant,
            id=id,
            app_id=call.caller.app.id,
            by=call.context.by,
            command=f"{call.request.method} {call.request.url.path}",
            body=None if self.sent is None else self.sent.model_dump(mode="json"),
            resolves_to=self.resolves_to,
            created_at=call.now,
            expires_at=call.now + APPROVAL_TTL,
        )
        before = await tx.approvals.get(call.tenant, id)
        stands = before is not None and before.is_open(call.now)
        if before is not None and before.approved_by is not None:
            stands = await _counts(tx, call, before)
        if not stands:
            await tx.approvals.put(wanted, expected=None if before is None else before.revision)
            await call.record(tx, AuditAction.APPROVAL_REQUESTED, id, command=wanted.command)
        same = await tx.approvals.approved(call.tenant, wanted.app_id, wanted.command, call.now)
        outdated = next(
            (approved for approved in same if approved.body == wanted.body and approved.id != id), None
        )
        if outdated is None:
            return Failure(ErrorCode.APPROVAL_REQUIRED, approval_id=id)
        names = sorted(
            name
            for name in {*outdated.resolves_to, *self.resolves_to}
            if outdated.resolves_to.get(name) != self.resolves_to.get(name)
        )
        why = f"{outdated.id} was approved for another state of: {', '.join(names).replace('_', ' ')}."
        return Failure(ErrorCode.APPROVAL_OUTDATED, why, approval_id=id)


class _NotApproved(Exception):
    """The command waits for its approval; its transaction is rolled back."""

    def __init__(self, command: _Command) -> None:
        super().__init__()
        self.command = command
