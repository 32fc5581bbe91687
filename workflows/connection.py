"""The life of one connection, from consent to revocation.

`run` waits for what happens next, asks `core.lifecycle` and carries out the step; the
result of a step is the next thing that happens. Signals, updates and timers all go
through one inbox, so that nothing is decided twice at once.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ApplicationError, FailureError

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.connections.connection import LifecycleState
    from evergrant_server.core.errors import FAILURES
    from evergrant_server.core.lifecycle.account_choice import (
        SIGNAL_ACCOUNT_CHOSEN,
        AccountChosen,
        LookUpAccounts,
        blocking_reason,
    )
    from evergrant_server.core.lifecycle.schedule import (
        NEWEST_RULES,
        RULES,
        LifecycleRules,
        jitter,
        with_announce_days,
    )
    from evergrant_server.core.lifecycle.timers import grant_ends_at, no_token_to_protect
    from evergrant_server.core.lifecycle.token_requests import callers_can_be_told, with_waiting_caller
    from evergrant_server.core.lifecycle.transition import (
        Command,
        Timer,
        Transition,
        ensure_fresh_refusal,
        next_step,
        next_timer,
    )
    from evergrant_server.core.messages import connection as m
    from evergrant_server.core.messages.late_tokens import (
        SIGNAL_LATE_TOKENS_RECEIVED,
        LateTokensReceived,
        VerifyLateTokens,
    )
    from evergrant_server.core.provider_events.external_revocation import (
        SIGNAL_REVOKED_AT_PROVIDER,
        RevokedAtProvider,
    )
    from workflows import activity_calls
    from workflows.cancellation import shielded_from_cancellation
    from workflows.presentation import STATE_ATTRIBUTE, details

_BY_ITSELF = m.RequestContext(by="schedule")


@dataclass
class _Ticket:
    """One happening in the inbox; `done` once everything it led to has been carried out."""

    happening: m.LifecycleEvent
    done: bool = False


@workflow.defn(name=m.CONNECTION_WORKFLOW)
class ConnectionWorkflow:
    @workflow.init
    def __init__(self, start: m.ConnectionStart) -> None:
        self._start = start
        self._rules = RULES[start.rules]
        self._life = start.life
        self._inbox = deque(_Ticket(happening) for happening in start.waiting)
        self._cancelled = False  # by hand
        self._busy = False  # something is being carried out, and the store may be ahead of the life

    @workflow.run
    async def run(self, start: m.ConnectionStart) -> m.ConnectionEnded:
        """Only a revocation ends a life: one whose run is cancelled by hand goes on in a new run."""
        return await shielded_from_cancellation(self._live(), self._cancel_asked)

    async def _live(self) -> m.ConnectionEnded:
        self._show()
        while not self._life.state.is_final:
            ticket = await self._next()
            if ticket is not None:
                await self._handle(ticket)
            if self._cancelled or self._long_enough():
                await self._continue_as_new()
        await activity_calls.run_ends(m.ExportRunHistory(**self._call(None)))
        await self._answer_everybody()
        life = self._life
        return m.ConnectionEnded(state=life.state, revocation=life.revocation, generations=life.generation)

    async def _next(self) -> _Ticket | None:
        """The oldest thing in the inbox, or the moment that `wake` names; None: a new run comes first."""
        due = self._wake()
        timeout = None if due is None else max((due.at - workflow.now()).total_seconds(), 0.001)
        try:
            await workflow.wait_condition(
                lambda: bool(self._inbox) or self._cancelled,
                timeout=timeout,
                timeout_summary=due.summary if due else None,
            )
        except TimeoutError:
            return _Ticket(m.LifecycleEvent(kind=m.EventKind.TIMER_FIRED, context=_BY_ITSELF))
        return self._inbox.popleft() if self._inbox else None

    async def _handle(self, ticket: _Ticket) -> None:
        self._busy = True
        await self._live_through(ticket.happening)
        self._life = with_waiting_caller(self._life, ticket.happening.reply_to, self._rules)
        await self._reply(ticket)
        await self._reply_again()
        self._busy, ticket.done = False, True

    async def _live_through(self, happening: m.LifecycleEvent | None) -> None:
        while happening is not None:
            step = next_step(self._life, happening, workflow.now(), self._rules_now(), self._share())
            moved = step.state.state is not self._life.state
            self._life = step.state
            self._show(moved)
            happening = await self._carry_out(step, happening)
        self._show()

    async def _carry_out(self, step: Transition, cause: m.LifecycleEvent) -> m.LifecycleEvent | None:
        """Have the step done by an activity; what came of it is the next happening."""
        match step.command:
            case Command.EXCHANGE_CODE:
                consent_id = cause.consent_id or (cause.result and cause.result.consent_id)
                assert consent_id is not None
                order = m.ExchangeCode(
                    **self._call(cause), consent_id=consent_id, generation=self._life.generation
                )
                news = await activity_calls.exchange_code(order)
                return m.LifecycleEvent(
                    kind=m.EventKind.CODE_EXCHANGE_ENDED, context=cause.context, result=news
                )
            case Command.REQUEST_CLIENT_GRANT | Command.POLL_DEVICE_TOKEN:
                consent_id = self._life.waiting_consent
                assert consent_id is not None
                order = m.RequestFirstTokens(
                    **self._call(cause), consent_id=consent_id, generation=self._life.generation
                )
                first_tokens = (
                    activity_calls.poll_device
                    if step.command is Command.POLL_DEVICE_TOKEN
                    else activity_calls.mint_grant
                )
                news = await first_tokens(order)
                return m.LifecycleEvent(
                    kind=m.EventKind.FIRST_TOKENS_ENDED,
                    context=cause.context,
                    result=news,
                    consent_id=consent_id,
                )
            case Command.REFRESH | Command.REFRESH_IF_LEASED:
                # a caller may have read a newer one: this run was reset, or a journal's answer came
                generation = max(self._life.generation, cause.seen_generation or 0)
                known = generation == self._life.generation  # of a newer one's end nothing is known here
                order = m.RefreshGrant(
                    **self._call(cause),
                    generation=generation,
                    only_if_leased=step.command is Command.REFRESH_IF_LEASED,
                    token_over=self._life.reported == generation
                    or (known and no_token_to_protect(self._life, workflow.now(), self._rules)),
                )
                news = await activity_calls.refresh_grant(order)
                return m.LifecycleEvent(kind=m.EventKind.REFRESH_ENDED, context=cause.context, result=news)
            case Command.VERIFY_LATE_TOKENS:
                assert self._life.late is not None
                news = await activity_calls.verify_late_answer(
                    VerifyLateTokens(**self._call(cause), attempt_id=self._life.late)
                )
                return m.LifecycleEvent(
                    kind=m.EventKind.LATE_VERIFICATION_ENDED, context=cause.context, result=news
                )
            case Command.LOOK_UP_ACCOUNTS:
                news = await activity_calls.look_up(
                    LookUpAccounts(**self._call(cause), generation=self._life.generation)
                )
                return m.LifecycleEvent(
                    kind=m.EventKind.ACCOUNT_LOOKUP_ENDED, context=cause.context, result=news
                )
            case Command.ANNOUNCE_EXPIRY:
                ends_at = grant_ends_at(self._life)
                assert ends_at is not None
                await activity_calls.announce_expiry(
                    m.AnnounceExpiry(**self._call(cause), days=step.days_before_end, ends_at=ends_at)
                )
            case Command.BEGIN_REVOCATION:
                await activity_calls.ask_revocation(
                    m.BeginRevocation(**self._call(cause), reason=self._life.revoke_reason or "")
                )
                return m.LifecycleEvent(kind=m.EventKind.REVOCATION_ENDED, context=cause.context)
            case Command.REVOKE:
                news = await activity_calls.revoke_grant(m.RevokeGrant(**self._call(cause)))
                return m.LifecycleEvent(
                    kind=m.EventKind.REVOCATION_ENDED, context=cause.context, revocation=news
                )
            case Command.END_CONSENT:
                order = m.EndConsent(**self._call(cause), consent_id=cause.consent_id, denied=step.denied)
                news = await activity_calls.end_consent(order)
                if news is not None:
                    return m.LifecycleEvent(
                        kind=m.EventKind.CONSENT_NOT_ENDED, context=cause.context, result=news
                    )
        return None

    async def _reply(self, ticket: _Ticket) -> None:
        """Answer a workflow that asked with `request_token`; it may be gone, which is its business."""
        if ticket.happening.reply_to is not None:
            await self._tell(ticket.happening.reply_to)

    async def _reply_again(self) -> None:
        """Tell those who were told no, and wait: somebody has repaired it, or it has ended."""
        life = self._life
        if life.reply_later and callers_can_be_told(life, self._rules):
            self._life = life.model_copy(update={"reply_later": ()})
            for caller in life.reply_later:
                await self._tell(caller)

    async def _tell(self, workflow_id: str) -> None:
        life = self._life
        ready = m.TokenReady(
            connection_id=self._start.connection_id,
            generation=life.generation,
            expires_at=life.expires_at,
            problem=life.refusal
            or (blocking_reason(life) if life.choosing or life.state is not LifecycleState.ACTIVE else None),
            again=workflow_id in life.reply_later,
        )
        caller = workflow.get_external_workflow_handle(workflow_id)
        try:
            await caller.signal(m.SIGNAL_TOKEN_READY, ready)
        except FailureError:
            workflow.logger.warning("the workflow that asked for a token is gone")

    async def _continue_as_new(self) -> None:
        """Hand the life, and the signals nobody got to, to a fresh run."""
        if self._life.state.is_final:
            return
        await activity_calls.run_ends(m.ExportRunHistory(**self._call(None)))
        await self._answer_everybody()
        if self._life.state.is_final:
            return
        waiting = tuple(ticket.happening for ticket in self._inbox)
        life = self._life.model_copy(update={"runs": self._life.runs + 1})
        changes = {"life": life, "waiting": waiting, "rules": NEWEST_RULES}
        workflow.continue_as_new(self._start.model_copy(update=changes))

    async def _answer_everybody(self) -> None:
        """Leave no update without its answer; signals may wait for the next run, if there is one."""
        while not workflow.all_handlers_finished() or (self._inbox and self._life.state.is_final):
            await workflow.wait_condition(lambda: bool(self._inbox) or workflow.all_handlers_finished())
            if self._inbox:
                await self._handle(self._inbox.popleft())

    # --- messages ---------------------------------------------------------------------

    @workflow.signal(name=m.SIGNAL_CONSENT_GRANTED)
    def consent_granted(self, it: m.ConsentGranted) -> None:
        self._put(m.EventKind.CONSENT_GRANTED, it.context, consent_id=it.consent_id)

    @workflow.signal(name=m.SIGNAL_CONSENT_DENIED)
    def consent_denied(self, it: m.ConsentDenied) -> None:
        self._put(m.EventKind.CONSENT_DENIED, it.context, consent_id=it.consent_id)

    @workflow.signal(name=m.SIGNAL_REVOKE)
    def revoke_signal(self, it: m.Revoke) -> None:
        self._put(m.EventKind.REVOCATION_REQUESTED, it.context, reason=it.reason)

    @workflow.signal(name=m.SIGNAL_ROTATE)
    def rotate(self, it: m.Rotate) -> None:
        self._put(
            m.EventKind.ROTATION_REQUESTED, it.context, reason=it.reason, seen_generation=it.seen_generation
        )

    @workflow.signal(name=m.SIGNAL_REQUEST_TOKEN)
    def request_token(self, it: m.RequestToken) -> None:
        if not m.is_valid_workflow_id(it.reply_to):
            workflow.logger.warning("a request for a token names no workflow to answer")
            return
        self._put(m.EventKind.TOKEN_REQUESTED, it.context, reply_to=it.reply_to, reason=it.app)

    @workflow.signal(name=m.SIGNAL_PROVIDER_CHANGED)
    def provider_changed(self, it: m.ProviderChanged) -> None:
        self._put(m.EventKind.PROVIDER_CHANGED, it.context)

    @workflow.signal(name=SIGNAL_REVOKED_AT_PROVIDER)
    def revoked_elsewhere(self, it: RevokedAtProvider) -> None:
        self._put(
            m.EventKind.REVOKED_AT_PROVIDER, it.context, seen_generation=it.generation, reason=it.source
        )

    @workflow.signal(name=SIGNAL_LATE_TOKENS_RECEIVED)
    def answer_came_late(self, it: LateTokensReceived) -> None:
        self._put(m.EventKind.LATE_TOKENS_RECEIVED, it.context, attempt_id=it.attempt_id)

    @workflow.signal(name=SIGNAL_ACCOUNT_CHOSEN)
    def choice_made(self, it: AccountChosen) -> None:
        self._put(m.EventKind.ACCOUNT_CHOSEN, it.context, reason=it.choice)

    @workflow.update(name=m.UPDATE_ENSURE_FRESH)
    async def ensure_fresh(self, it: m.EnsureFresh) -> m.EnsureFreshResult:
        """Callers share one refresh: the second finds the generation already newer."""
        ticket = self._put(
            m.EventKind.REFRESH_REQUESTED,
            it.context,
            seen_generation=it.seen_generation,
            wish=it.refresh_reason,
        )
        await self._done(ticket)
        life = self._life
        if life.declined_s is not None and life.generation <= it.seen_generation:
            return m.EnsureFreshResult(generation=life.generation, retry_after=life.declined_s, declined=True)
        again = life.ask_at or life.retry_at
        return m.EnsureFreshResult(
            generation=life.generation,
            problem=life.refusal if life.generation <= it.seen_generation else None,
            retry_after=None if again is None else max((again - workflow.now()).total_seconds(), 0),
        )

    @ensure_fresh.validator
    def _worth_it(self, it: m.EnsureFresh) -> None:
        refusal = None if self._busy else ensure_fresh_refusal(self._life, it.seen_generation)
        if refusal is not None:
            raise ApplicationError(FAILURES[refusal].meaning, type=refusal, non_retryable=True)

    @workflow.update(name=m.UPDATE_REAUTHORIZE)
    async def reauthorize(self, it: m.Reauthorize) -> m.ConnectionDescription:
        await self._done(
            self._put(m.EventKind.REAUTHORIZATION_REQUESTED, it.context, consent_id=it.consent_id)
        )
        return self.describe()

    @workflow.update(name=m.UPDATE_REVOKE)
    async def revoke(self, it: m.Revoke) -> m.ConnectionDescription:
        await self._done(self._put(m.EventKind.REVOCATION_REQUESTED, it.context, reason=it.reason))
        return self.describe()

    @revoke.validator
    def _not_revoked_yet(self, it: m.Revoke) -> None:
        if self._life.state.is_final:
            raise ApplicationError("nothing is left to revoke", type=self._life.state, non_retryable=True)

    @workflow.query(name=m.QUERY_DESCRIBE)
    def describe(self) -> m.ConnectionDescription:
        life, due = self._life, self._wake()
        reason = blocking_reason(life)
        return m.ConnectionDescription(
            connection_id=self._start.connection_id,
            state=life.state,
            generation=life.generation,
            expires_at=life.expires_at,
            next_step=due.summary if due else "nothing, until somebody asks",
            next_at=due.at if due else None,
            reason=reason,
            repairer=FAILURES[reason].repairer if reason else None,
            failures=life.failures,
            failed=life.failed,
            failing_since=life.failing_since,
            reply_later=life.reply_later,
        )

    # --- small parts ------------------------------------------------------------------

    def _put(self, event: m.EventKind, asked: m.RequestContext, **brings: Any) -> _Ticket:
        ticket = _Ticket(m.LifecycleEvent(kind=event, context=asked, **brings))
        self._inbox.append(ticket)
        return ticket

    def _cancel_asked(self) -> None:
        self._cancelled = True

    async def _done(self, ticket: _Ticket) -> None:
        await workflow.wait_condition(lambda: ticket.done)

    def _call(self, cause: m.LifecycleEvent | None) -> dict[str, Any]:
        info = workflow.info()
        return {
            "tenant": self._start.tenant,
            "connection_id": self._start.connection_id,
            "context": cause.context if cause else _BY_ITSELF,
            "provenance": m.Provenance(
                workflow_id=info.workflow_id,
                run_id=info.run_id,
                event_id=info.get_current_history_length(),
            ),
        }

    def _long_enough(self) -> bool:
        info = workflow.info()
        length = info.get_current_history_length()
        return info.is_continue_as_new_suggested() or length >= self._rules.longest_history

    def _wake(self) -> Timer | None:
        return next_timer(self._life, self._rules_now(), self._share())

    def _rules_now(self) -> LifecycleRules:
        return with_announce_days(self._rules, self._life.announce_days)

    def _share(self) -> float:
        return jitter(self._start.connection_id, self._life.generation)

    def _show(self, moved: bool = False) -> None:
        workflow.set_current_details(details(self._start, self._life, self._wake()))
        if moved:
            workflow.upsert_search_attributes([STATE_ATTRIBUTE.value_set(self._life.state)])
