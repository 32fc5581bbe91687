"""Random lives: whatever the order, no illegal state, revoked is final, no generation goes back."""

from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from evergrant_server.core.connection import Revocation, State
from evergrant_server.core.errors import FAILURES, Code, Kind
from evergrant_server.core.flow import Flow
from evergrant_server.core.ids import ConsentId
from evergrant_server.core.lifecycle import Do, next_step, wake
from evergrant_server.core.messages import Asked, Event, GrantNews, Happening, Life, RevocationNews, Wish
from evergrant_server.core.schedule import RULES, RefreshPolicy

ASKED = Asked(by="app:test")
PROVIDER_FAILURES = [
    code
    for code, rule_ in FAILURES.items()
    if rule_.kind in (Kind.RECONNECT_NEEDED, Kind.CLIENT_MISCONFIGURED, Kind.PROVIDER_UNAVAILABLE)
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
        self.life = Life(policy=policy, flow=flow, consent_deadline=self.now + timedelta(hours=1))
        self.store_generation = 0
        self.consents = 0
        self.revoke_seen = False
        self.highest = 0
        self.pending: Do | None = None

    def happen(self, event: Event, **brings: object) -> Do:
        before = self.life
        step = next_step(self.life, Happening(event=event, asked=ASKED, **brings), self.now, self.rules)
        self.life = step.life
        self.revoke_seen |= self.life.state in (State.REVOKING, State.REVOKED)
        assert self.life.generation >= before.generation
        if before.state.final:
            assert self.life.state is before.state
            assert step.do is Do.NOTHING
        return step.do

    def carry_out(self, do: Do, data: st.DataObject) -> None:
        while do is not Do.NOTHING:
            match do:
                case Do.EXCHANGE_CODE:
                    do = self.happen(Event.CODE_EXCHANGED, news=self.news(data))
                case Do.MINT | Do.POLL:
                    consent = self.life.waiting_consent
                    assert consent is not None
                    do = self.happen(Event.GRANT_MINTED, news=self.news(data), consent_id=consent)
                case Do.REFRESH | Do.REFRESH_IF_LEASED:
                    assert self.life.state is State.ACTIVE
                    if do is Do.REFRESH_IF_LEASED and data.draw(st.booleans()):
                        do = self.happen(Event.GRANT_REFRESHED, news=GrantNews(not_leased=True))
                    else:
                        do = self.happen(Event.GRANT_REFRESHED, news=self.news(data))
                case Do.ASK_REVOCATION:
                    do = self.happen(Event.REVOCATION_TRIED)
                case Do.REVOKE:
                    assert self.life.state is State.REVOKING
                    news = data.draw(
                        st.sampled_from(
                            [
                                RevocationNews(revocation=Revocation.CONFIRMED),
                                RevocationNews(failure=Code.PROVIDER_UNREACHABLE),
                            ]
                        )
                    )
                    do = self.happen(Event.REVOCATION_TRIED, revocation=news)
                case Do.ANNOUNCE:
                    assert self.life.state is State.ACTIVE
                    do = Do.NOTHING
                case Do.END_CONSENT:
                    assert self.life.state in (State.DENIED, State.CONSENT_EXPIRED)
                    do = Do.NOTHING

    def news(self, data: st.DataObject) -> GrantNews:
        if data.draw(st.booleans()):
            return GrantNews(
                failure=data.draw(st.sampled_from(PROVIDER_FAILURES)),
                retry_after=data.draw(st.one_of(st.none(), st.floats(0, 3600))),
                refused=data.draw(st.booleans()),
            )
        self.store_generation += 1
        lifetime = data.draw(st.one_of(st.none(), st.integers(1, 100_000)))
        age = data.draw(st.one_of(st.none(), st.integers(1, 40)))
        return GrantNews(
            state=State.REVOKING if data.draw(st.integers(0, 9)) == 0 else State.ACTIVE,
            generation=self.store_generation,
            obtained_at=self.now,
            expires_at=None if lifetime is None else self.now + timedelta(seconds=lifetime),
            refreshable=data.draw(st.booleans()),
            idle_s=data.draw(st.one_of(st.none(), st.just(86_400.0 * 90))),
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
        do = self.happen(Event.CONSENT_GRANTED, consent_id=consent)
        assert not (known and do is Do.EXCHANGE_CODE), "a code is exchanged once"
        self.carry_out(do, data)

    @rule(data=st.data())
    def consent_denied(self, data: st.DataObject) -> None:
        was = self.life.state
        self.carry_out(self.happen(Event.CONSENT_DENIED), data)
        if was is not State.PENDING_CONSENT:
            assert self.life.state is was

    @rule(data=st.data(), behind=st.integers(0, 2), wish=st.sampled_from(list(Wish)))
    def freshness_asked(self, data: st.DataObject, behind: int, wish: Wish) -> None:
        seen = max(self.life.generation - behind, 0)
        do = self.happen(Event.FRESHNESS_ASKED, seen_generation=seen, wish=wish)
        if behind and self.life.state is State.ACTIVE and self.life.generation > seen:
            assert do is Do.NOTHING, "callers share one refresh"
        self.carry_out(do, data)

    @rule(data=st.data())
    def token_requested(self, data: st.DataObject) -> None:
        self.carry_out(self.happen(Event.TOKEN_REQUESTED, reply_to="somebody"), data)

    @rule(data=st.data())
    def rotate_asked(self, data: st.DataObject) -> None:
        self.carry_out(self.happen(Event.ROTATE_ASKED, reason="test"), data)

    @rule(data=st.data(), behind=st.integers(0, 2))
    def revoked_elsewhere(self, data: st.DataObject, behind: int) -> None:
        before = self.life
        self.carry_out(self.happen(Event.REVOKED_ELSEWHERE, seen_generation=before.generation - behind), data)
        if behind or before.state not in (State.ACTIVE, State.NEEDS_REAUTH):
            assert self.life.state is before.state
        else:
            assert self.life.state is State.NEEDS_REAUTH

    @rule(data=st.data())
    def provider_changed(self, data: st.DataObject) -> None:
        self.carry_out(self.happen(Event.PROVIDER_CHANGED), data)

    @rule(data=st.data())
    def time_passes_to_the_next_wake(self, data: st.DataObject) -> None:
        due = wake(self.life, self.rules)
        if due is None:
            return
        self.now = max(self.now, due.at)
        self.carry_out(self.happen(Event.TIME_CAME), data)

    @rule(data=st.data(), seconds=st.floats(0, 3600))
    def time_passes(self, data: st.DataObject, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @precondition(lambda self: self.life.generation > 0 or self.consents > 3)
    @rule(data=st.data())
    def revoke_asked(self, data: st.DataObject) -> None:
        self.carry_out(self.happen(Event.REVOKE_ASKED, reason="test"), data)
        assert self.life.state in (State.REVOKING, State.REVOKED, State.DENIED, State.CONSENT_EXPIRED)

    @invariant()
    def once_revoked_never_back(self) -> None:
        if self.revoke_seen:
            assert self.life.state in (State.REVOKING, State.REVOKED)

    @invariant()
    def a_generation_never_goes_back(self) -> None:
        assert self.life.generation >= self.highest
        self.highest = self.life.generation

    @invariant()
    def what_needs_nobody_wakes_by_itself(self) -> None:
        """A connection that only time can move on has a next moment."""
        if self.life.state in (State.PENDING_CONSENT, State.REVOKING):
            assert wake(self.life, self.rules) is not None

    @invariant()
    def a_reason_says_why_somebody_must_act(self) -> None:
        if self.life.state in (State.NEEDS_REAUTH, State.REVOKING, State.DENIED, State.CONSENT_EXPIRED):
            assert self.life.reason is not None


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
