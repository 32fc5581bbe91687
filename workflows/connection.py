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
    from evergrant_server.core import messages as m
    from evergrant_server.core.asking import no_longer_waiting, waiting
    from evergrant_server.core.choice import SIGNAL_CHOICE_MADE, ChoiceMade, LookUp, reason_of
    from evergrant_server.core.connection import State
    from evergrant_server.core.elsewhere import SIGNAL_REVOKED_ELSEWHERE, RevokedElsewhere
    from evergrant_server.core.errors import FAILURES
    from evergrant_server.core.late_messages import SIGNAL_ANSWER_CAME_LATE, AnswerCameLate, VerifyLateAnswer
    from evergrant_server.core.lifecycle import Do, Step, Wake, ensure_fresh_refusal, next_step, wake
    from evergrant_server.core.schedule import NEWEST_RULES, RULES, Rules, announcing, jitter
    from evergrant_server.core.waking import end_of, nothing_to_keep
    from workflows import calls
    from workflows.cancelling import despite_cancellation
    from workflows.presentation import STATE_ATTRIBUTE, details

_BY_ITSELF = m.Asked(by="schedule")


@dataclass
class _Ticket:
    """One happening in the inbox; `done` once everything it led to has been carried out."""

    happening: m.Happening
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
    async def run(self, start: m.ConnectionStart) -> m.Ended:
        """Only a revocation ends a life: one whose run is cancelled by hand goes on in a new run."""
        return await despite_cancellation(self._live(), self._cancel_asked)

    async def _live(self) -> m.Ended:
        self._show()
        while not self._life.state.final:
            ticket = await self._next()
            if ticket is not None:
                await self._handle(ticket)
            if self._cancelled or self._long_enough():
                await self._continue_as_new()
        await calls.run_ends(m.RunEnds(**self._call(None)))
        await self._answer_everybody()
        life = self._life
        return m.Ended(state=life.state, revocation=life.revocation, generations=life.generation)

    async def _next(self) -> _Ticket | None:
        """The oldest thing in the inbox, or the moment that `wake` names; None: a new run comes first."""
        due = self._wake()
        timeout = None if due is None else max((due.at - workflow.now()).total_seconds(), 0.001)
        try:
            await workflow.wait_condition(
                lambda: bool(self._inbox) or self._cancelled,
                timeout=timeout,
                timeout_summary=due.why if due else None,
            )
        except TimeoutError:
            return _Ticket(m.Happening(event=m.Event.TIME_CAME, asked=_BY_ITSELF))
        return self._inbox.popleft() if self._inbox else None

    async def _handle(self, ticket: _Ticket) -> None:
        self._busy = True
        await self._live_through(ticket.happening)
        self._life = waiting(self._life, ticket.happening.reply_to, self._rules)
        await self._reply(ticket)
        await self._reply_again()
        self._busy, ticket.done = False, True

    async def _live_through(self, happening: m.Happening | None) -> None:
        while happening is not None:
            step = next_step(self._life, happening, workflow.now(), self._rules_now(), self._share())
            moved = step.life.state is not self._life.state
            self._life = step.life
            self._show(moved)
            happening = await self._carry_out(step, happening)
        self._show()

    async def _carry_out(self, step: Step, cause: m.Happening) -> m.Happening | None:
        """Have the step done by an activity; what came of it is the next happening."""
        match step.do:
            case Do.EXCHANGE_CODE:
                consent_id = cause.consent_id or (cause.news and cause.news.consent_id)
                assert consent_id is not None
                order = m.ExchangeCode(
                    **self._call(cause), consent_id=consent_id, generation=self._life.generation
                )
                news = await calls.exchange_code(order)
                return m.Happening(event=m.Event.CODE_EXCHANGED, asked=cause.asked, news=news)
            case Do.MINT | Do.POLL:
                consent_id = self._life.waiting_consent
                assert consent_id is not None
                order = m.MintGrant(
                    **self._call(cause), consent_id=consent_id, generation=self._life.generation
                )
                first_tokens = calls.poll_device if step.do is Do.POLL else calls.mint_grant
                news = await first_tokens(order)
                return m.Happening(
                    event=m.Event.GRANT_MINTED, asked=cause.asked, news=news, consent_id=consent_id
                )
            case Do.REFRESH | Do.REFRESH_IF_LEASED:
                # a caller may have read a newer one: this run was reset, or a journal's answer came
                generation = max(self._life.generation, cause.seen_generation or 0)
                known = generation == self._life.generation  # of a newer one's end nothing is known here
                order = m.RefreshGrant(
                    **self._call(cause),
                    generation=generation,
                    only_if_leased=step.do is Do.REFRESH_IF_LEASED,
                    token_over=self._life.reported == generation
                    or (known and nothing_to_keep(self._life, workflow.now(), self._rules)),
                )
                news = await calls.refresh_grant(order)
                return m.Happening(event=m.Event.GRANT_REFRESHED, asked=cause.asked, news=news)
            case Do.VERIFY_LATE:
                assert self._life.late is not None
                news = await calls.verify_late_answer(
                    VerifyLateAnswer(**self._call(cause), attempt_id=self._life.late)
                )
                return m.Happening(event=m.Event.LATE_ANSWER_TRIED, asked=cause.asked, news=news)
            case Do.LOOK_UP:
                news = await calls.look_up(LookUp(**self._call(cause), generation=self._life.generation))
                return m.Happening(event=m.Event.LOOKED_UP, asked=cause.asked, news=news)
            case Do.ANNOUNCE:
                ends_at = end_of(self._life)
                assert ends_at is not None
                await calls.announce_expiry(
                    m.AnnounceExpiry(**self._call(cause), days=step.days, ends_at=ends_at)
                )
            case Do.ASK_REVOCATION:
                await calls.ask_revocation(
                    m.AskRevocation(**self._call(cause), reason=self._life.revoke_reason or "")
                )
                return m.Happening(event=m.Event.REVOCATION_TRIED, asked=cause.asked)
            case Do.REVOKE:
                news = await calls.revoke_grant(m.RevokeGrant(**self._call(cause)))
                return m.Happening(event=m.Event.REVOCATION_TRIED, asked=cause.asked, revocation=news)
            case Do.END_CONSENT:
                order = m.EndConsent(**self._call(cause), consent_id=cause.consent_id, denied=step.denied)
                news = await calls.end_consent(order)
                if news is not None:
                    return m.Happening(event=m.Event.CONSENT_STANDS, asked=cause.asked, news=news)
        return None

    async def _reply(self, ticket: _Ticket) -> None:
        """Answer a workflow that asked with `request_token`; it may be gone, which is its business."""
        if ticket.happening.reply_to is not None:
            await self._tell(ticket.happening.reply_to)

    async def _reply_again(self) -> None:
        """Tell those who were told no, and wait: somebody has repaired it, or it has ended."""
        life = self._life
        if life.reply_later and no_longer_waiting(life, self._rules):
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
            or (reason_of(life) if life.choosing or life.state is not State.ACTIVE else None),
            again=workflow_id in life.reply_later,
        )
        caller = workflow.get_external_workflow_handle(workflow_id)
        try:
            await caller.signal(m.SIGNAL_TOKEN_READY, ready)
        except FailureError:
            workflow.logger.warning("the workflow that asked for a token is gone")

    async def _continue_as_new(self) -> None:
        """Hand the life, and the signals nobody got to, to a fresh run."""
        if self._life.state.final:
            return
        await calls.run_ends(m.RunEnds(**self._call(None)))
        await self._answer_everybody()
        if self._life.state.final:
            return
        waiting = tuple(ticket.happening for ticket in self._inbox)
        life = self._life.model_copy(update={"runs": self._life.runs + 1})
        changes = {"life": life, "waiting": waiting, "rules": NEWEST_RULES}
        workflow.continue_as_new(self._start.model_copy(update=changes))

    async def _answer_everybody(self) -> None:
        """Leave no update without its answer; signals may wait for the next run, if there is one."""
        while not workflow.all_handlers_finished() or (self._inbox and self._life.state.final):
            await workflow.wait_condition(lambda: bool(self._inbox) or workflow.all_handlers_finished())
            if self._inbox:
                await self._handle(self._inbox.popleft())

    # --- messages ---------------------------------------------------------------------

    @workflow.signal(name=m.SIGNAL_CONSENT_GRANTED)
    def consent_granted(self, it: m.ConsentGranted) -> None:
        self._put(m.Event.CONSENT_GRANTED, it.asked, consent_id=it.attempt_id)

    @workflow.signal(name=m.SIGNAL_CONSENT_DENIED)
    def consent_denied(self, it: m.ConsentDenied) -> None:
        self._put(m.Event.CONSENT_DENIED, it.asked, consent_id=it.attempt_id)

    @workflow.signal(name=m.SIGNAL_REVOKE)
    def revoke_signal(self, it: m.Revoke) -> None:
        self._put(m.Event.REVOKE_ASKED, it.asked, reason=it.reason)

    @workflow.signal(name=m.SIGNAL_ROTATE)
    def rotate(self, it: m.Rotate) -> None:
        self._put(m.Event.ROTATE_ASKED, it.asked, reason=it.reason, seen_generation=it.seen_generation)

    @workflow.signal(name=m.SIGNAL_REQUEST_TOKEN)
    def request_token(self, it: m.RequestToken) -> None:
        if not m.is_workflow_id(it.reply_to):
            workflow.logger.warning("a request for a token names no workflow to answer")
            return
        self._put(m.Event.TOKEN_REQUESTED, it.asked, reply_to=it.reply_to, reason=it.app)

    @workflow.signal(name=m.SIGNAL_PROVIDER_CHANGED)
    def provider_changed(self, it: m.ProviderChanged) -> None:
        self._put(m.Event.PROVIDER_CHANGED, it.asked)

    @workflow.signal(name=SIGNAL_REVOKED_ELSEWHERE)
    def revoked_elsewhere(self, it: RevokedElsewhere) -> None:
        self._put(m.Event.REVOKED_ELSEWHERE, it.asked, seen_generation=it.generation, reason=it.source)

    @workflow.signal(name=SIGNAL_ANSWER_CAME_LATE)
    def answer_came_late(self, it: AnswerCameLate) -> None:
        self._put(m.Event.ANSWER_CAME_LATE, it.asked, attempt_id=it.attempt_id)

    @workflow.signal(name=SIGNAL_CHOICE_MADE)
    def choice_made(self, it: ChoiceMade) -> None:
        self._put(m.Event.CHOICE_MADE, it.asked, reason=it.choice)

    @workflow.update(name=m.UPDATE_ENSURE_FRESH)
    async def ensure_fresh(self, it: m.EnsureFresh) -> m.Freshness:
        """Callers share one refresh: the second finds the generation already newer."""
        ticket = self._put(
            m.Event.FRESHNESS_ASKED, it.asked, seen_generation=it.seen_generation, wish=it.wish
        )
        await self._done(ticket)
        life = self._life
        if life.declined_s is not None and life.generation <= it.seen_generation:
            return m.Freshness(generation=life.generation, retry_after=life.declined_s, declined=True)
        again = life.ask_at or life.retry_at
        return m.Freshness(
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
    async def reauthorize(self, it: m.Reauthorize) -> m.Description:
        await self._done(self._put(m.Event.REAUTHORIZE_ASKED, it.asked, consent_id=it.consent_id))
        return self.describe()

    @workflow.update(name=m.UPDATE_REVOKE)
    async def revoke(self, it: m.Revoke) -> m.Description:
        await self._done(self._put(m.Event.REVOKE_ASKED, it.asked, reason=it.reason))
        return self.describe()

    @revoke.validator
    def _not_revoked_yet(self, it: m.Revoke) -> None:
        if self._life.state.final:
            raise ApplicationError("nothing is left to revoke", type=self._life.state, non_retryable=True)

    @workflow.query(name=m.QUERY_DESCRIBE)
    def describe(self) -> m.Description:
        life, due = self._life, self._wake()
        reason = reason_of(life)
        return m.Description(
            connection_id=self._start.connection_id,
            state=life.state,
            generation=life.generation,
            expires_at=life.expires_at,
            next_step=due.why if due else "nothing, until somebody asks",
            next_at=due.at if due else None,
            reason=reason,
            repairer=FAILURES[reason].repairer if reason else None,
            failures=life.failures,
            failed=life.failed,
            failing_since=life.failing_since,
            reply_later=life.reply_later,
        )

    # --- small parts ------------------------------------------------------------------

    def _put(self, event: m.Event, asked: m.Asked, **brings: Any) -> _Ticket:
        ticket = _Ticket(m.Happening(event=event, asked=asked, **brings))
        self._inbox.append(ticket)
        return ticket

    def _cancel_asked(self) -> None:
        self._cancelled = True

    async def _done(self, ticket: _Ticket) -> None:
        await workflow.wait_condition(lambda: ticket.done)

    def _call(self, cause: m.Happening | None) -> dict[str, Any]:
        info = workflow.info()
        return {
            "tenant": self._start.tenant,
            "connection_id": self._start.connection_id,
            "asked": cause.asked if cause else _BY_ITSELF,
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

    def _wake(self) -> Wake | None:
        return wake(self._life, self._rules_now(), self._share())

    def _rules_now(self) -> Rules:
        return announcing(self._rules, self._life.announce_days)

    def _share(self) -> float:
        return jitter(self._start.connection_id, self._life.generation)

    def _show(self, moved: bool = False) -> None:
        workflow.set_current_details(details(self._start, self._life, self._wake()))
        if moved:
            workflow.upsert_search_attributes([STATE_ATTRIBUTE.value_set(self._life.state)])
