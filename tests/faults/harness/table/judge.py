"""What a case may end with. Everything else is a violation, or a connection lost."""

from dataclasses import dataclass, field
from enum import StrEnum

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.consent import ConsentStatus
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import Rotation
from tests.faults.harness.table.case_run import CaseRecord, Layout
from tests.faults.harness.table.cases import WRITING
from tests.faults.harness.table.scenarios import CONFIRM, REFRESH
from tests.faults.harness.table.send_rules import all_were_kept, sent_though_kept, taken_over_too_early


class Verdict(StrEnum):
    KEPT = "kept"
    REFUSED = "refused, as scripted"
    REVOKED = "revoked meanwhile"
    UNKNOWN = "outcome_unknown"
    UNREACHABLE = "outcome_unknown, its journal on a host that was away too long"
    CROSSED = "sent again by another host while its own host replayed the answer"
    DOUBLE = "double_send_window"
    ASKED_AGAIN = "code not exchanged, subject asked again"
    LOST = "lost"
    VIOLATION = "violation"


BAD = (Verdict.LOST, Verdict.VIOLATION)
GRANTED = 1  # the generation that a refresh begins with


@dataclass
class Judgement:
    told: CaseRecord
    verdict: Verdict
    why: list[str] = field(default_factory=list)
    double_sends: int = 0

    @property
    def story(self) -> list[str]:
        """What the provider saw, in seconds since the first use."""
        uses = self.told.idp.uses
        seen = [f"{it.came - uses[0].came:+.2f} s: {it.worker} {it}" for it in uses]
        return [
            *seen,
            f"took {self.told.took_s:.1f} s; fault came: {self.told.reached}; answer kept: {self.told.kept}",
        ]

    def __str__(self) -> str:
        return f"{self.verdict.upper()}: {self.told.case}: {'; '.join(self.why)}"


def judge(told: CaseRecord) -> Judgement:
    """The oracles of one case; the worst thing found is its verdict."""
    wrongs = [*told.end.wrongs]
    overlapping = told.idp.in_flight_together()
    if overlapping and told.case.layout is not Layout.HOSTS:
        wrongs.append(f"{overlapping} uses of one credential in flight together on one host")
    wrongs += [*taken_over_too_early(told), *sent_though_kept(told)]
    if told.hung:
        wrongs.append("no worker came to an outcome")
    wrongs += [it for it in told.raised if it.startswith("unexpected")]
    if told.end.open_attempt and not told.revoked:  # a revocation settles what it finds open
        wrongs.append("an attempt is still open")
    ended = _of_refresh if told.case.scenario.flow == REFRESH else _of_exchange
    verdict, why = ended(told)
    if verdict is Verdict.LOST:
        verdict, why = _excused(told) or (verdict, why)
    if wrongs and verdict is not Verdict.LOST:
        verdict = Verdict.VIOLATION
    return Judgement(told, verdict, [*wrongs, *([why] if why else [])], overlapping)


def in_window(told: CaseRecord) -> bool:
    """The provider acted, and nothing of ours had kept its answer: neither when the fault came, nor
    afterwards, before another use was sent.

    Without a fault (its point was not reached) a short limit passed, on a busy machine.
    """
    good = any(use.good for use in told.idp.uses)
    return good and not told.kept and not all_were_kept(told)


def double_sent(told: CaseRecord) -> bool:
    """Stopped between the last check and the first byte: what no client can exclude across hosts."""
    fault = told.case.fault
    stopped = fault is not None and (fault.kind, fault.side, fault.point) == ("stop", "after", WRITING)
    return stopped and told.case.layout is Layout.HOSTS


def _excused(told: CaseRecord) -> tuple[Verdict, str] | None:
    """A loss that no client can exclude: it is counted, by its own name."""
    if double_sent(told):
        return Verdict.DOUBLE, ""
    answered = told.kept or _went_on(told)
    if told.case.layout is Layout.HOSTS and answered and len(told.idp.uses) > 1:
        return Verdict.CROSSED, ""
    return None


def _went_on(told: CaseRecord) -> bool:
    """Stopped with the answer in hand and not in a journal yet, it went on and installed it."""
    fault = told.case.fault
    return fault is not None and fault.kind == "stop" and told.end.connection.generation > GRANTED


def _away(told: CaseRecord) -> bool:
    """Another host went on, and the journal with the answer was out of its reach for too long. That it
    wasn't too short is judged by itself."""
    return told.case.layout is Layout.HOSTS and told.case.fault is not None


def _of_refresh(told: CaseRecord) -> tuple[Verdict, str]:
    connection, scenario = told.end.connection, told.case.scenario
    match connection.state:
        case LifecycleState.REVOKING if told.revoked:
            return Verdict.REVOKED, ""
        case LifecycleState.ACTIVE:
            return _of_active(told)
        case LifecycleState.NEEDS_REAUTH if _taken_for_good(told):
            return Verdict.LOST, f"its answer was taken for good, and it ended as {connection.reason}"
        case LifecycleState.NEEDS_REAUTH if scenario.refused:
            return Verdict.REFUSED, ""
        case LifecycleState.NEEDS_REAUTH if connection.reason is ErrorCode.OUTCOME_UNKNOWN:
            return _of_unknown(told)
        case _:
            return Verdict.LOST, f"ended {connection.state} because of {connection.reason}"


def _taken_for_good(told: CaseRecord) -> bool:
    """An answer that crossed another use was installed, though a journal would have kept it for so long."""
    installed = told.end.crossed_a_refusal or told.end.connection.reason is not ErrorCode.OUTCOME_UNKNOWN
    return told.case.scenario.crosses is not None and told.kept and installed


def _of_unknown(told: CaseRecord) -> tuple[Verdict, str]:
    """`outcome_unknown` is honest only when an answer died, or was out of reach."""
    if told.end.crossed_a_refusal:
        return _excused(told) or (Verdict.LOST, "what was installed had been ended by another use")
    if told.end.connection.generation > GRANTED:
        return Verdict.UNKNOWN, "two answers lost: one came too late, and the other never"
    spends = told.case.rotation is Rotation.STRICT or told.case.scenario.flow != REFRESH
    if spends and in_window(told):
        return Verdict.UNKNOWN, ""
    if spends and double_sent(told):
        return Verdict.DOUBLE, ""
    if spends and _away(told):
        return Verdict.UNREACHABLE, ""
    if told.case.rotation is Rotation.GRACE and len(told.idp.uses) > 1:
        return Verdict.UNKNOWN, "two answers lost: not sent a third time, grace or not"
    return Verdict.LOST, "given up as outcome_unknown, and no answer had died in the window"


def _of_active(told: CaseRecord) -> tuple[Verdict, str]:
    if told.case.scenario.provider == "crooked" or told.case.scenario.secrets == "wrong":
        return Verdict.REFUSED, ""
    if told.revoked:
        return Verdict.VIOLATION, "a revocation was undone"
    if not told.idp.usable(told.end.refresh_token):
        return Verdict.LOST, "the store calls it active, the provider has killed it"
    proof = told.proof
    if proof is None or proof.failure is not None:
        return Verdict.LOST, f"one more refresh ended {proof.failure if proof else 'never'}"
    return Verdict.KEPT, ""


def _of_exchange(told: CaseRecord) -> tuple[Verdict, str]:
    connection, consent = told.end.connection, told.end.consent
    assert consent is not None
    if consent.status is ConsentStatus.DONE and connection.state is LifecycleState.ACTIVE:
        unheard = Verdict.VIOLATION, "the store has a grant that the workflow was not told of"
        return _of_active(told) if told.heard else unheard
    if told.case.scenario.late:
        undone = consent.status is ConsentStatus.OPEN and not told.idp.uses
        return (Verdict.REFUSED, "") if undone else (Verdict.VIOLATION, f"{consent.status} after its time")
    if told.case.scenario.flow == CONFIRM and told.case.scenario.refused and told.idp.uses:
        return Verdict.VIOLATION, "a code was sent that no app had confirmed"
    if consent.status is not ConsentStatus.FAILED or connection.state is not LifecycleState.PENDING_CONSENT:
        return Verdict.LOST, f"consent {consent.status}, connection {connection.state}"
    if told.case.scenario.refused:
        return Verdict.REFUSED, ""
    if consent.failure == ErrorCode.OUTCOME_UNKNOWN:
        return _of_unknown(told)
    if consent.failure == ErrorCode.PROVIDER_UNREACHABLE:
        return Verdict.ASKED_AGAIN, ""
    return Verdict.LOST, f"the consent failed with {consent.failure} while its code was good"
