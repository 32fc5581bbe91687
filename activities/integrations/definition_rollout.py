"""A definition's way in: checked by machine, decided by an admin, rolled out in stages."""

from temporalio import activity

from activities.support.heartbeat import heartbeating
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
from evergrant_server.core.messages.definition_rollout import DefinitionCall, DefinitionResult
from evergrant_server.core.messages.names import ActivityName
from evergrant_server.egress import Egress
from evergrant_server.store import Store, Transaction
from providers.definition.registry import Registry
from providers.tools.definition_check import check_definition

_DECISION_TIMEOUT = "nobody decided in time"


class DefinitionRolloutActivities:
    def __init__(self, store: Store, registry: Registry, egress: Egress, clock: Clock) -> None:
        self._store = store
        self._registry = registry
        self._egress = egress
        self._clock = clock

    @activity.defn(name=ActivityName.CHECK_DEFINITION)
    async def check_definition(self, order: DefinitionCall) -> DefinitionResult:
        """Look at schema, hosts, TLS and endpoints, and write what was found."""
        async with heartbeating():
            async with self._store.read() as tx:
                definition = await _load_definition(tx, order)
                serving = await tx.definitions.serving(order.tenant, definition.name)
            if definition.state is not DefinitionState.CHECKING:
                return _result(definition)
            before = (
                self._registry.serving(definition.name, serving)
                if self._replaces(definition, serving)
                else None
            )
            findings = await check_definition(self._egress, self._registry.parse(definition), before)

        async def write(tx: Transaction) -> DefinitionResult:
            now = self._clock.now()
            current = await _load_definition(tx, order)
            if current.state is not DefinitionState.CHECKING:
                return _result(current)
            after = await tx.definitions.replace(
                current.with_checks(findings, now), expected=current.revision
            )
            wrong = [it.check for it in findings if it.level != "ok"]
            await self._record(tx, order, AuditAction.DEFINITION_CHECKED, after, not_ok=wrong)
            return _result(after)

        return await commit_with_retries(self._store, write)

    @activity.defn(name=ActivityName.APPLY_DEFINITION_DECISION)
    async def decide_definition(self, order: DefinitionCall) -> DefinitionResult:
        """Carry out what an admin decided: the first stage, or the end."""

        async def write(tx: Transaction) -> DefinitionResult:
            now = self._clock.now()
            current = await _load_definition(tx, order)
            if current.state is not DefinitionState.WAITING:
                return _result(current)
            if current.approved:
                serving = await tx.definitions.serving(order.tenant, current.name)
                return await self._write_move(
                    tx, order, current, current.started(now, replaces=self._replaces(current, serving))
                )
            if current.approved is None and not order.overdue:
                return _result(current)
            return await self._write_move(tx, order, current, current.rejected(now, _DECISION_TIMEOUT))

        return await commit_with_retries(self._store, write)

    @activity.defn(name=ActivityName.EVALUATE_ROLLOUT)
    async def watch_definition(self, order: DefinitionCall) -> DefinitionResult:
        """Look at a stage's counts, and roll on or back."""

        async def write(tx: Transaction) -> DefinitionResult:
            now = self._clock.now()
            current = await _load_definition(tx, order)
            if current.state is not DefinitionState.STAGED:
                return _result(current)
            if order.roll_back is not None:
                return await self._write_move(tx, order, current, current.rolled_back(order.roll_back, now))
            match judge_rollout(current, now):
                case RolloutVerdict.WAIT:
                    return _result(current)
                case RolloutVerdict.HOLD:
                    look = max(HELD_CHECK_INTERVAL_S, current.rollout.check_interval_s)
                    return _result(current).model_copy(update={"next_check_s": look})
                case RolloutVerdict.ROLL_ON:
                    return await self._write_move(tx, order, current, current.advanced(now))
                case RolloutVerdict.ROLL_BACK:
                    why = f"{current.failed} of {current.succeeded + current.failed} refreshes worked only as before"
                    return await self._write_move(tx, order, current, current.rolled_back(why, now))

        return await commit_with_retries(self._store, write)

    def _replaces(self, definition: Definition, serving: list[Definition]) -> bool:
        return bool(serving) or definition.name in self._registry.names()

    async def _write_move(
        self, tx: Transaction, order: DefinitionCall, before: Definition, after: Definition
    ) -> DefinitionResult:
        """Write the move with its record; what an active version replaces ends with it."""
        saved = await tx.definitions.replace(after, expected=before.revision)
        if saved.state is DefinitionState.ACTIVE:
            for older in await tx.definitions.serving(order.tenant, saved.name):
                if older.version < saved.version:
                    ended = older.replaced(self._clock.now())
                    await tx.definitions.replace(ended, expected=older.revision)
        await self._record(tx, order, _ACTIONS[saved.state], saved, share=saved.share, reason=saved.reason)
        return _result(saved)

    async def _record(
        self, tx: Transaction, order: DefinitionCall, action: AuditAction, it: Definition, **detail: object
    ) -> None:
        entry = AuditEntry(
            tenant=it.tenant,
            at=self._clock.now(),
            action=action,
            object=it.id,
            context=order.context,
            detail={"provider": it.name, "version": it.version, **detail},
            provenance=order.provenance,
        )
        await audit.append(tx, entry)


_ACTIONS = {
    DefinitionState.STAGED: AuditAction.DEFINITION_STAGED,
    DefinitionState.ACTIVE: AuditAction.DEFINITION_ACTIVATED,
    DefinitionState.REJECTED: AuditAction.DEFINITION_REJECTED,
    DefinitionState.ROLLED_BACK: AuditAction.DEFINITION_ROLLED_BACK,
}


async def _load_definition(tx: Transaction, order: DefinitionCall) -> Definition:
    found = await tx.definitions.get(order.tenant, order.definition_id)
    if found is None:
        raise Failure(ErrorCode.NOT_FOUND, f"there is no definition {order.definition_id}")
    return found


def _result(it: Definition) -> DefinitionResult:
    decided = it.approved is not None
    return DefinitionResult(state=it.state, share=it.share, good=it.succeeded, bad=it.failed, decided=decided)
