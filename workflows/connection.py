"""One connection, from its consent to its revocation.

`run` waits for the next event, asks `core.lifecycle` and carries the command out; the result of a
command is the next event. Signals, updates and timers go through one inbox, so that two decisions
are never made at once.
"""

from typing import Any

from temporalio import workflow
from temporalio.common import SearchAttributeKey
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.connections.connection import LifecycleState
    from evergrant_server.core.errors import FAILURES
    from evergrant_server.core.lifecycle.consents import blocking_reason
    from evergrant_server.core.lifecycle.refresh import (
        callers_can_be_told,
        ensure_fresh_refusal,
        with_waiting_caller,
    )
    from evergrant_server.core.lifecycle.schedule import (
        NEWEST_RULES,
        RULES,
        LifecycleRules,
        jitter,
        with_announce_days,
    )
    from evergrant_server.core.lifecycle.timers import Timer, next_timer
    from evergrant_server.core.lifecycle.transition import next_step
    from evergrant_server.core.messages import connection as m
    from evergrant_server.core.messages.activities import ExportRunHistory
    from evergrant_server.core.messages.base import SCHEDULE, RequestContext
    from evergrant_server.core.messages.jobs import EXPORT_RUN_HISTORY
    from evergrant_server.core.messages.names import (
        QueryName,
        SearchAttribute,
        SignalName,
        UpdateName,
        WorkflowName,
        is_valid_workflow_id,
    )
    from workflows import runs
    from workflows.commands import Overtaken, carry_out
    from workflows.inbox import Inbox, Replies, Ticket

_SCHEDULE = RequestContext(by=SCHEDULE)
_STATE_ATTRIBUTE = SearchAttributeKey.for_keyword(SearchAttribute.STATE)


@workflow.defn(name=WorkflowName.CONNECTION)
class ConnectionWorkflow:
    @runs.init
    def __init__(self, start: m.ConnectionStart) -> None:
        self._start = start
        self._connection = start.state
        self._inbox = Inbox(start.pending_events)
        self._cancelled = False  # by the operator
        self._replies = Replies()
        self._busy = False  # a command is being carried out: the store may be ahead of the state

    @workflow.run
    async def run(self, start: m.ConnectionStart) -> m.ConnectionEnded:
        """A run that the operator cancels is followed by a new one: only a final state ends it."""
        return await runs.shielded_from_cancellation(self._until_final(), self._cancel_requested)

    async def _until_final(self) -> m.ConnectionEnded:
        self._show()
        while not self._connection.state.is_final:
            ticket = await self._next_ticket()
            if ticket is not None:
                await self._handle(ticket)
            if self._cancelled or self._is_long_enough():
                await self._continue_as_new()
        await runs.call(EXPORT_RUN_HISTORY, ExportRunHistory(**self._call(_SCHEDULE)))
        await self._finish_handlers()
        connection = self._connection
        return m.ConnectionEnded(
            state=connection.state, revocation=connection.revocation, generations=connection.generation
        )

    async def _next_ticket(self) -> Ticket | None:
        """The oldest event of the inbox, or that of the next timer; None after a cancellation."""
        timer = self._next_timer()
        timeout = None if timer is None else max((timer.at - workflow.now()).total_seconds(), 0.001)
        try:
            await workflow.wait_condition(
                lambda: bool(self._inbox) or self._cancelled,
                timeout=timeout,
                timeout_summary=timer.summary if timer else None,
            )
        except TimeoutError:
            return Ticket(m.LifecycleEvent(kind=m.EventKind.TIMER_FIRED, context=_SCHEDULE))
        return self._inbox.take() if self._inbox else None

    async def _handle(self, ticket: Ticket) -> None:
        self._busy = True
        event: m.LifecycleEvent | None = ticket.event
        while event is not None:
            now = workflow.now()
            step = next_step(self._connection, event, now, self._rules(), self._share())
            changed = step.state.state is not self._connection.state
            self._connection = step.state
            self._show(changed)
            call, inbox = self._call(event.context), self._inbox
            try:
                event = await carry_out(step, event, call, workflow.now(), inbox.is_waited_for)
            except Overtaken:
                self._busy = False
                return inbox.put(ticket)
        self._show()
        await self._reply(ticket.event.reply_to)
        self._busy, ticket.done = False, True

    async def _continue_as_new(self) -> None:
        """Hand the state, and the signals that are left, to a new run."""
        if self._connection.state.is_final:
            return
        await runs.call(EXPORT_RUN_HISTORY, ExportRunHistory(**self._call(_SCHEDULE)))
        await self._finish_handlers()
        if self._connection.state.is_final:
            return
        state = self._connection.__replace__(runs=self._connection.runs + 1)
        workflow.continue_as_new(
            self._start.__replace__(state=state, pending_events=self._inbox.events, rules=NEWEST_RULES)
        )

    async def _finish_handlers(self) -> None:
        """Every update gets its answer; signals may wait for the next run, if there is one."""
        await self._handle_what_must_be_answered()
        while self._replies.under_way:  # an update may come meanwhile
            await self._replies.finish()
            await self._handle_what_must_be_answered()

    async def _handle_what_must_be_answered(self) -> None:
        while not workflow.all_handlers_finished() or (self._inbox and self._connection.state.is_final):
            await workflow.wait_condition(lambda: bool(self._inbox) or workflow.all_handlers_finished())
            if self._inbox:
                await self._handle(self._inbox.take_oldest())

    # --- answers to `request_token` ----------------------------------------------------

    async def _reply(self, reply_to: str | None) -> None:
        """Answer the workflow that requested a token and, once a person has acted, those that waited."""
        self._connection = with_waiting_caller(self._connection, reply_to)
        if reply_to is not None:
            await self._send_token_ready(reply_to)
        waiting = self._connection.waiting_callers
        if waiting and callers_can_be_told(self._connection):
            self._connection = self._connection.__replace__(waiting_callers=())
            for caller in waiting:
                await self._send_token_ready(caller)

    async def _send_token_ready(self, workflow_id: str) -> None:
        connection = self._connection
        usable = connection.state is LifecycleState.ACTIVE and not connection.choice_pending
        message = m.TokenReady(
            connection_id=self._start.connection_id,
            generation=connection.generation,
            expires_at=connection.expires_at,
            problem=connection.refusal or (None if usable else blocking_reason(connection)),
            again=workflow_id in connection.waiting_callers,
        )
        await self._replies.send(workflow_id, message)

    # --- signals, updates, queries -----------------------------------------------------

    @workflow.signal(name=SignalName.CONSENT_GRANTED)
    def consent_granted(self, signal: m.ConsentGranted) -> None:
        self._put(m.EventKind.CONSENT_GRANTED, signal.context, consent_id=signal.consent_id)

    @workflow.signal(name=SignalName.CONSENT_DENIED)
    def consent_denied(self, signal: m.ConsentDenied) -> None:
        self._put(m.EventKind.CONSENT_DENIED, signal.context, consent_id=signal.consent_id)

    @workflow.signal(name=SignalName.CONSENT_RETURNED)
    def consent_returned(self, signal: m.ConsentReturned) -> None:
        self._put(
            m.EventKind.CONSENT_RETURNED, signal.context, consent_id=signal.consent_id, until=signal.until
        )

    @workflow.signal(name=SignalName.REVOKE)
    def revoke(self, signal: m.Revoke) -> None:
        self._put(m.EventKind.REVOCATION_REQUESTED, signal.context, reason=signal.reason)

    @workflow.signal(name=SignalName.ROTATE)
    def rotate(self, signal: m.Rotate) -> None:
        seen = signal.seen_generation
        self._put(m.EventKind.ROTATION_REQUESTED, signal.context, reason=signal.reason, seen_generation=seen)

    @workflow.signal(name=SignalName.REQUEST_TOKEN)
    def request_token(self, signal: m.RequestToken) -> None:
        if not is_valid_workflow_id(signal.reply_to):
            workflow.logger.warning("a request for a token names no workflow to answer")
            return
        self._put(m.EventKind.TOKEN_REQUESTED, signal.context, reply_to=signal.reply_to, reason=signal.app)

    @workflow.signal(name=SignalName.PROVIDER_CHANGED)
    def provider_changed(self, signal: m.ProviderChanged) -> None:
        self._put(m.EventKind.PROVIDER_CHANGED, signal.context)

    @workflow.signal(name=SignalName.REVOKED_AT_PROVIDER)
    def revoked_at_provider(self, signal: m.RevokedAtProvider) -> None:
        self._put(
            m.EventKind.REVOKED_AT_PROVIDER,
            signal.context,
            seen_generation=signal.generation,
            reason=signal.source,
        )

    @workflow.signal(name=SignalName.LATE_TOKENS_RECEIVED)
    def late_tokens_received(self, signal: m.LateTokensReceived) -> None:
        self._put(m.EventKind.LATE_TOKENS_RECEIVED, signal.context, attempt_id=signal.attempt_id)

    @workflow.signal(name=SignalName.ACCOUNT_CHOSEN)
    def account_chosen(self, signal: m.AccountChosen) -> None:
        self._put(m.EventKind.ACCOUNT_CHOSEN, signal.context, reason=signal.choice)

    @workflow.update(name=UpdateName.ENSURE_FRESH)
    async def ensure_fresh(self, request: m.EnsureFresh) -> m.EnsureFreshResult:
        """Callers share one refresh: the second finds the generation already newer."""
        wanted = request.model_dump(exclude={"context"})
        ticket = self._put(m.EventKind.REFRESH_REQUESTED, request.context, **wanted)
        await workflow.wait_condition(lambda: ticket.done)
        connection = self._connection
        older = connection.generation <= request.seen_generation
        if connection.declined_s is not None and older:
            return m.EnsureFreshResult(
                generation=connection.generation, retry_after=connection.declined_s, declined=True
            )
        again = connection.caller_retry_at or connection.retry_at
        return m.EnsureFreshResult(
            generation=connection.generation,
            problem=connection.refusal if older else None,
            why=connection.why_unsent if older and connection.refusal is connection.reason else None,
            retry_after=None if again is None else max((again - workflow.now()).total_seconds(), 0),
        )

    @ensure_fresh.validator
    def _refuse_needless_refresh(self, request: m.EnsureFresh) -> None:
        """A rejected update leaves nothing in the history."""
        refusal = None if self._busy else ensure_fresh_refusal(self._connection, request.seen_generation)
        if refusal is not None:
            raise ApplicationError(FAILURES[refusal].meaning, type=refusal, non_retryable=True)

    @workflow.query(name=QueryName.DESCRIBE)
    def describe(self) -> m.ConnectionDescription:
        connection, timer = self._connection, self._next_timer()
        reason = blocking_reason(connection)
        return m.ConnectionDescription(
            connection_id=self._start.connection_id,
            state=connection.state,
            generation=connection.generation,
            expires_at=connection.expires_at,
            next_step=timer.summary if timer else "nothing, until a caller asks",
            next_at=timer.at if timer else None,
            reason=reason,
            repairer=FAILURES[reason].repairer if reason else None,
            failures=connection.failures,
            revocation_failure=connection.revocation_failure,
            revocation_failing_since=connection.revocation_failing_since,
            waiting_callers=connection.waiting_callers,
        )

    # --- what the above is made of -----------------------------------------------------

    def _put(self, kind: m.EventKind, context: RequestContext, **brings: Any) -> Ticket:
        ticket = Ticket(m.LifecycleEvent(kind=kind, context=context.as_received(), **brings))
        self._inbox.put(ticket)
        return ticket

    def _cancel_requested(self) -> None:
        self._cancelled = True

    def _call(self, context: RequestContext) -> dict[str, Any]:
        """The fields of a ConnectionCall."""
        return {
            "tenant": self._start.tenant,
            "connection_id": self._start.connection_id,
            "integration_id": self._start.integration_id,
            "context": context,
            "provenance": runs.provenance(),
        }

    def _is_long_enough(self) -> bool:
        info = workflow.info()
        long = info.get_current_history_length() >= self._rules().longest_history
        return long or info.is_continue_as_new_suggested()

    def _next_timer(self) -> Timer | None:
        return next_timer(self._connection, self._rules(), self._share())

    def _rules(self) -> LifecycleRules:
        return with_announce_days(RULES[self._start.rules], self._connection.announce_days)

    def _share(self) -> float:
        return jitter(self._start.connection_id, self._connection.generation)

    def _show(self, state_changed: bool = False) -> None:
        details = _details(self._start, self._connection, self._next_timer())
        workflow.set_current_details(details)
        if state_changed:
            workflow.upsert_search_attributes([_STATE_ATTRIBUTE.value_set(self._connection.state)])


def _details(start: m.ConnectionStart, connection: m.ConnectionState, timer: Timer | None) -> str:
    """Markdown: the state, what comes next, and who has to act."""
    expires_at = connection.expires_at.isoformat() if connection.expires_at else "no expiry"
    lines = [
        f"**{connection.state}** at `{start.integration}` ({start.provider}), "
        f"generation {connection.generation}",
        "",
        f"- access token expires: {expires_at}" if connection.generation else "- no grant yet",
        f"- next: {timer.summary} at {timer.at.isoformat()}"
        if timer
        else "- next: nothing, until a caller asks",
    ]
    if connection.reason is not None:
        rule = FAILURES[connection.reason]
        lines.append(f"- `{connection.reason}`: {rule.meaning} To repair ({rule.repairer}): {rule.repair}")
        if connection.why_unsent is not None:
            lines.append(f"- nothing was sent: {connection.why_unsent}")
    if connection.failures:
        lines.append(f"- failures in a row: {connection.failures}")
    if connection.revocation_failure is not None and connection.revocation_failing_since is not None:
        since = connection.revocation_failing_since.isoformat()
        lines.append(f"- revocation fails since {since}, last with `{connection.revocation_failure}`")
    if connection.revocation is not None:
        lines.append(f"- revocation: {connection.revocation}")
    return "\n".join(lines)
