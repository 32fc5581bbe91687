"""Random lives: whatever the order, no illegal state, revoked is final, no generation goes back."""

from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from evergrant_server.core.connections.connection import LifecycleState, RevocationOutcome
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import FAILURES, ErrorCode, FailureKind
from evergrant_server.core.errors.kinds import FailureCause
from evergrant_server.core.ids import AttemptId, ConsentId
from evergrant_server.core.lifecycle.command import Command
from evergrant_server.core.lifecycle.confirmations import next_to_lapse
from evergrant_server.core.lifecycle.schedule import RULES, RefreshPolicy
from evergrant_server.core.lifecycle.timers import next_timer
from evergrant_server.core.lifecycle.transition import next_step
from evergrant_server.core.messages.activities import GrantResult, RevocationResult
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.connection import (
    ConnectionState,
    EventKind,
    LifecycleEvent,
    RefreshReason,
)

ASKED = RequestContext(by="app:test")
PROVIDER_FAILURES = [
    code
    for code, rule_ in FAILURES.items()
    if rule_.kind
    in (FailureKind.RECONNECT_NEEDED, FailureKind.CLIENT_MISCONFIGURED, FailureKind.PROVIDER_UNAVAILABLE)
]


class Lives(RuleBasedStateMachine):
    """A workflow without Temporal: it carries steps out with results that hypothesis picks."""

    @initialize(
        policy=st.sampled_from(list(RefreshPolicy)),
        version=st.sampled_from(list(RULES)),
        flow=st.sampled_from(list(Flow)),
    )
    def begin(self, policy: RefreshPolicy, version: int, flow: Flow) -> None:
        self.rules = RULES[version]
        self.now = datetime(2030, 1, 1, tzinfo=UTC)
        self.life = ConnectionState(policy=policy, flow=flow, consent_deadline=self.now + timedelta(hours=1))
        self.store_generation = 0
        self.consents = 0
        self.revoke_seen = False
        self.highest = 0
        self.pending: Command | None = None

    def happen(self, event: EventKind, **brings: object) -> Command:
        before = self.life
        step = next_step(self.life, LifecycleEvent(kind=event, context=ASKED, **brings), self.now, self.rules)
        self.life = step.state
        self.revoke_seen |= self.life.state in (LifecycleState.REVOKING, LifecycleState.REVOKED)
        assert self.life.generation >= before.generation
        if before.state.is_final:
            assert self.life.state is before.state
            assert step.command is Command.NOTHING
        return step.command

    def carry_out(self, do: Command, data: st.DataObject) -> None:
        while do is not Command.NOTHING:
            match do:
                case Command.EXCHANGE_CODE:
                    do = self.happen(EventKind.CODE_EXCHANGE_ENDED, result=self.news(data))
                case Command.REQUEST_CLIENT_GRANT | Command.POLL_DEVICE_TOKEN:
                    consent = self.life.waiting_consent
                    assert consent is not None
                    do = self.happen(EventKind.FIRST_TOKENS_ENDED, result=self.news(data), consent_id=consent)
                case Command.REFRESH | Command.REFRESH_IF_LEASED:
                    assert self.life.state is LifecycleState.ACTIVE
                    if do is Command.REFRESH_IF_LEASED and data.draw(st.booleans()):
                        do = self.happen(EventKind.REFRESH_ENDED, result=GrantResult(not_leased=True))
                    else:
                        do = self.happen(EventKind.REFRESH_ENDED, result=self.news(data))
                case Command.VERIFY_LATE_TOKENS:
                    assert self.life.state in (LifecycleState.NEEDS_REAUTH, LifecycleState.PENDING_CONSENT)
                    do = self.happen(EventKind.LATE_VERIFICATION_ENDED, result=self.news(data))
                case Command.BEGIN_REVOCATION:
                    do = self.happen(EventKind.REVOCATION_ENDED)
                case Command.REVOKE:
                    assert self.life.state is LifecycleState.REVOKING
                    news = RevocationResult(revocation=RevocationOutcome.CONFIRMED)
                    if data.draw(st.booleans()):
                        news = RevocationResult(failure=ErrorCode.PROVIDER_UNREACHABLE)
                    do = self.happen(EventKind.REVOCATION_ENDED, revocation=news)
                case Command.ANNOUNCE_EXPIRY:
                    assert self.life.state is LifecycleState.ACTIVE
                    do = Command.NOTHING
                case Command.LAPSE_CONSENT:
                    overdue = next_to_lapse(self.life)
                    assert overdue is not None
                    assert overdue.until <= self.now
                    do = self.happen(EventKind.CONSENT_LAPSED, consent_id=overdue.consent_id)
                case Command.END_CONSENT:
                    assert self.life.state in (LifecycleState.DENIED, LifecycleState.CONSENT_EXPIRED)
                    do = Command.NOTHING

    def news(self, data: st.DataObject) -> GrantResult:
        if data.draw(st.booleans()):
            failure = data.draw(st.sampled_from(PROVIDER_FAILURES))
            last_try = failure is ErrorCode.GRANT_PROBABLY_OVER
            return GrantResult(
                failure=failure,
                last_try=last_try,
                attempt_id=AttemptId("att_1") if last_try else None,
                retry_after=data.draw(st.one_of(st.none(), st.floats(0, 3600))),
                unknown_error=data.draw(st.booleans()),
                answer_lost=data.draw(st.booleans()),
                undecided=data.draw(st.integers(0, 9)) == 0,
            )
        self.store_generation += 1
        lifetime = data.draw(st.one_of(st.none(), st.integers(1, 100_000)))
        age = data.draw(st.one_of(st.none(), st.integers(1, 40)))
        return GrantResult(
            state=LifecycleState.REVOKING if data.draw(st.integers(0, 9)) == 0 else LifecycleState.ACTIVE,
            generation=self.store_generation,
            obtained_at=self.now,
            expires_at=None if lifetime is None else self.now + timedelta(seconds=lifetime),
            refreshable=data.draw(st.booleans()),
            refresh_token_idle_s=data.draw(st.one_of(st.none(), st.just(86_400.0 * 90))),
            refresh_expires_at=None if age is None else self.now + timedelta(days=age),
            margin_s=data.draw(st.one_of(st.none(), st.just(30.0))),
            min_age_s=data.draw(st.one_of(st.none(), st.just(86_400.0))),
        )

    @rule(data=st.data(), again=st.booleans())
    def consent_granted(self, data: st.DataObject, again: bool) -> None:
        if not again:
            self.consents += 1
        consent = ConsentId(f"cns_{self.consents}")
        known = consent in self.life.recent_consents
        do = self.happen(EventKind.CONSENT_GRANTED, consent_id=consent)
        assert not (known and do is Command.EXCHANGE_CODE), "a code is exchanged once"
        self.carry_out(do, data)

    @rule(wait=st.integers(0, 300))
    def consent_returned(self, wait: int) -> None:
        self.consents += 1
        until = self.now + timedelta(seconds=wait)
        do = self.happen(
            EventKind.CONSENT_RETURNED, consent_id=ConsentId(f"cns_{self.consents}"), until=until
        )
        assert do is Command.NOTHING

    @rule(data=st.data())
    def consent_denied(self, data: st.DataObject) -> None:
        was = self.life.state
        self.carry_out(self.happen(EventKind.CONSENT_DENIED), data)
        if was is not LifecycleState.PENDING_CONSENT:
            assert self.life.state is was

    @rule(data=st.data(), behind=st.integers(0, 2), wish=st.sampled_from(list(RefreshReason)))
    def freshness_asked(self, data: st.DataObject, behind: int, wish: RefreshReason) -> None:
        seen = max(self.life.generation - behind, 0)
        do = self.happen(EventKind.REFRESH_REQUESTED, seen_generation=seen, refresh_reason=wish)
        if behind and self.life.state is LifecycleState.ACTIVE and self.life.generation > seen:
            assert do is Command.NOTHING, "callers share one refresh"
        self.carry_out(do, data)

    @rule(data=st.data())
    def token_requested(self, data: st.DataObject) -> None:
        self.carry_out(self.happen(EventKind.TOKEN_REQUESTED, reply_to="somebody"), data)

    @rule(data=st.data())
    def rotate_asked(self, data: st.DataObject) -> None:
        self.carry_out(self.happen(EventKind.ROTATION_REQUESTED, reason="test"), data)

    @rule(data=st.data(), behind=st.integers(0, 2))
    def revoked_elsewhere(self, data: st.DataObject, behind: int) -> None:
        before = self.life
        self.carry_out(
            self.happen(EventKind.REVOKED_AT_PROVIDER, seen_generation=before.generation - behind), data
        )
        if behind or before.state not in (LifecycleState.ACTIVE, LifecycleState.NEEDS_REAUTH):
            assert self.life.state is before.state
        else:
            assert self.life.state is LifecycleState.NEEDS_REAUTH

    @rule(data=st.data())
    def provider_changed(self, data: st.DataObject) -> None:
        self.carry_out(self.happen(EventKind.PROVIDER_CHANGED), data)

    @rule(data=st.data())
    def time_passes_to_the_next_wake(self, data: st.DataObject) -> None:
        due = next_timer(self.life, self.rules)
        if due is None:
            return
        self.now = max(self.now, due.at)
        self.carry_out(self.happen(EventKind.TIMER_FIRED), data)

    @rule(data=st.data(), seconds=st.floats(0, 3600))
    def time_passes(self, data: st.DataObject, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @precondition(lambda self: self.life.generation > 0 or self.consents > 3)
    @rule(data=st.data())
    def revoke_asked(self, data: st.DataObject) -> None:
        self.carry_out(self.happen(EventKind.REVOCATION_REQUESTED, reason="test"), data)
        assert self.life.state is LifecycleState.REVOKING or self.life.state.is_final

    @invariant()
    def once_revoked_never_back(self) -> None:
        if self.revoke_seen:
            assert self.life.state in (LifecycleState.REVOKING, LifecycleState.REVOKED)

    @invariant()
    def a_generation_never_goes_back(self) -> None:
        assert self.life.generation >= self.highest
        self.highest = self.life.generation

    @invariant()
    def what_needs_nobody_wakes_by_itself(self) -> None:
        """A connection that only time can move on has a next moment."""
        if self.life.state in (LifecycleState.PENDING_CONSENT, LifecycleState.REVOKING):
            assert next_timer(self.life, self.rules) is not None

    @invariant()
    def what_is_probably_over_is_tried_once_more_or_never(self) -> None:
        if self.life.late_attempt is not None:
            timer = next_timer(self.life, self.rules)
            assert self.life.state is LifecycleState.NEEDS_REAUTH
            assert timer is not None

    @invariant()
    def no_refusal_waits_for_more_than_hours(self) -> None:
        """Whatever has failed before it, by rules that count each cause apart."""
        life = self.life
        refused = life.state is LifecycleState.ACTIVE and life.cause is FailureCause.REFUSAL
        if self.rules.counts_by_cause and refused:
            assert life.retry_at is not None
            assert life.retry_at - self.now <= timedelta(hours=5)
            assert life.tries > 2 or life.retry_at - self.now <= timedelta(hours=1), "as Retry-After says"

    @invariant()
    def a_reason_says_why_somebody_must_act(self) -> None:
        if self.life.state in (
            LifecycleState.NEEDS_REAUTH,
            LifecycleState.REVOKING,
            LifecycleState.DENIED,
            LifecycleState.CONSENT_EXPIRED,
        ):
            assert self.life.reason is not None


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=60, stateful_step_count=30)
