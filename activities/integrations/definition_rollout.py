"""Rolls out a proposed definition: automatic checks, an admin's decision, stages."""

from collections.abc import Awaitable, Callable

from temporalio import activity

from activities.support.temporal import heartbeating
from activities.support.transactions import commit_with_retries
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.definition import (
    HELD_CHECK_INTERVAL_S,
    Definition,
    DefinitionState,
    RolloutVerdict,
    judge_rollout,
)
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.integrations import DefinitionCall, DefinitionResult
from evergrant_server.core.messages.names import ActivityName
from evergrant_server.egress import Egress
from evergrant_server.store import Store, Transaction
from providers.definition.registry import Registry
from providers.tools.definition_check import check_definition

_DECISION_TIMEOUT = "no admin decided in time"
_Change = Callable[[Transaction, Definition], Awaitable[DefinitionResult]]


class DefinitionRolloutActivities:
    def __init__(self, store: Store, registry: Registry, egress: Egress, clock: Clock) -> None:
        self._store = store
        self._registry = registry
        self._egress = egress
        self._clock = clock

    @activity.defn(name=ActivityName.CHECK_DEFINITION)
    async def check_definition(self, request: DefinitionCall) -> DefinitionResult:
        """Check schema, hosts, TLS and endpoints, and write the findings."""
        async with heartbeating():
            async with self._store.read() as tx:
                definition = await _load_definition(tx, request)
                serving = await tx.definitions.serving(request.tenant, definition.name)
            if definition.state is not DefinitionState.CHECKING:
                return _result(definition)
            replaces = self._replaces(definition, serving)
            before = self._registry.serving(definition.name, serving) if replaces else None
            findings = await check_definition(self._egress, self._registry.parse(definition), before)

        async def write_checks(tx: Transaction, current: Definition) -> DefinitionResult:
            checked = current.with_checks(findings, self._clock.now())
            after = await tx.definitions.replace(checked, expected=current.revision)
            not_ok = [finding.check for finding in findings if finding.level != "ok"]
            await self._record(tx, request, AuditAction.DEFINITION_CHECKED, after, not_ok=not_ok)
            return _result(after)

        return await self._change_in(DefinitionState.CHECKING, request, write_checks)

    @activity.defn(name=ActivityName.APPLY_DEFINITION_DECISION)
    async def apply_decision(self, request: DefinitionCall) -> DefinitionResult:
        """Apply the admin's decision: start the first stage, or reject the definition."""

        async def decide(tx: Transaction, current: Definition) -> DefinitionResult:
            now = self._clock.now()
            if current.approved:
                serving = await tx.definitions.serving(request.tenant, current.name)
                started = current.started(now, replaces=self._replaces(current, serving))
                return await self._write_move(tx, request, current, started)
            if current.approved is None and not request.overdue:
                return _result(current)
            return await self._write_move(tx, request, current, current.rejected(now, _DECISION_TIMEOUT))

        return await self._change_in(DefinitionState.WAITING, request, decide)

    @activity.defn(name=ActivityName.EVALUATE_ROLLOUT)
    async def evaluate_rollout(self, request: DefinitionCall) -> DefinitionResult:
        """Evaluate the counts of a stage, and roll forward or back."""

        async def evaluate(tx: Transaction, current: Definition) -> DefinitionResult:
            now, why = self._clock.now(), request.roll_back
            verdict = RolloutVerdict.ROLL_BACK if why is not None else judge_rollout(current, now)
            match verdict:
                case RolloutVerdict.WAIT:
                    return _result(current)
                case RolloutVerdict.HOLD:
                    next_check_s = max(HELD_CHECK_INTERVAL_S, current.rollout.check_interval_s)
                    return _result(current).__replace__(next_check_s=next_check_s)
                case RolloutVerdict.ROLL_ON:
                    return await self._write_move(tx, request, current, current.advanced(now))
                case RolloutVerdict.ROLL_BACK:
                    total = current.succeeded + current.failed
                    counted = f"{current.failed} of {total} refreshes worked only with the earlier version"
                    after = current.rolled_back(counted if why is None else why, now)
                    return await self._write_move(tx, request, current, after)

        return await self._change_in(DefinitionState.STAGED, request, evaluate)

    async def _change_in(
        self, state: DefinitionState, request: DefinitionCall, change: _Change
    ) -> DefinitionResult:
        """Run `change` on the definition, unless it has left this state."""

        async def write(tx: Transaction) -> DefinitionResult:
            current = await _load_definition(tx, request)
            return await change(tx, current) if current.state is state else _result(current)

        return await commit_with_retries(self._store, write)

    def _replaces(self, definition: Definition, serving: list[Definition]) -> bool:
        return bool(serving) or definition.name in self._registry.names()

    async def _write_move(
        self, tx: Transaction, request: DefinitionCall, before: Definition, after: Definition
    ) -> DefinitionResult:
        """Write the new state with its audit record. An active version ends the version that it replaces."""
        saved = await tx.definitions.replace(after, expected=before.revision)
        if saved.state is DefinitionState.ACTIVE:
            for older in await tx.definitions.serving(request.tenant, saved.name):
                if older.version < saved.version:
                    ended = older.replaced(self._clock.now())
                    await tx.definitions.replace(ended, expected=older.revision)
        await self._record(tx, request, _ACTIONS[saved.state], saved, share=saved.share, reason=saved.reason)
        return _result(saved)

    async def _record(
        self,
        tx: Transaction,
        request: DefinitionCall,
        action: AuditAction,
        definition: Definition,
        **detail: object,
    ) -> None:
        entry = AuditEntry(
            tenant=definition.tenant,
            at=self._clock.now(),
            action=action,
            object=definition.id,
            context=request.context,
            detail={"provider": definition.name, "version": definition.version, **detail},
            provenance=request.provenance,
        )
        await audit.append(tx, entry)


_ACTIONS = {
    DefinitionState.STAGED: AuditAction.DEFINITION_STAGED,
    DefinitionState.ACTIVE: AuditAction.DEFINITION_ACTIVATED,
    DefinitionState.REJECTED: AuditAction.DEFINITION_REJECTED,
    DefinitionState.ROLLED_BACK: AuditAction.DEFINITION_ROLLED_BACK,
}


async def _load_definition(tx: Transaction, request: DefinitionCall) -> Definition:
    found = await tx.definitions.get(request.tenant, request.definition_id)
    if found is None:
        raise Failure(ErrorCode.NOT_FOUND, f"there is no definition {request.definition_id}")
    return found


def _result(definition: Definition) -> DefinitionResult:
    return DefinitionResult(
        state=definition.state,
        share=definition.share,
        succeeded=definition.succeeded,
        failed=definition.failed,
        decided=definition.approved is not None,
    )
