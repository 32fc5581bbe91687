"""Who may send a credential again: two rules of docs/protocol.md, judged by the rows of the attempts.

They hold under every fault, for credentials that a provider takes once. They are judged by moments of one
machine, on which all of a case's workers run, and only by those that are certain: where it isn't known
whose journal it was, or the time of a decision, nothing is judged.
"""

from collections.abc import Iterator

from evergrant_server.core.integrations import Rotation
from evergrant_server.core.single_use.attempt import AttemptKind, AttemptOutcome
from tests.faults.harness.database import AttemptRecord
from tests.faults.harness.instrumentation.points import JOURNAL
from tests.faults.harness.provider import Use
from tests.faults.harness.table.case_run import CaseRecord, host_of
from tests.faults.harness.workers.limits import ANSWER_S, REPLAY_S

_TAKEN_OVER = (AttemptOutcome.SUPERSEDED, AttemptOutcome.INSTALLED_LATE)
_ANSWERED = (*_TAKEN_OVER, AttemptOutcome.INSTALLED)


def taken_over_too_early(told: CaseRecord) -> list[str]:
    """By another host, which can't see what the first one does, while an answer could still come.

    Lets through: every use after `send_by` and the longest answer, also when the first one was
    stopped and sends or is answered later than that (the double-send window, which is counted), or when
    the machine stood still, so that both uses were under way together; and a worker of the same host,
    which sees for itself who is dead. `written` is after the decision: who decided late isn't early.
    """
    return [
        f"{there} took over from {here} {first.send_by + ANSWER_S - second.written:.2f} s too early"
        for first, second in _one_after_another(told)
        if first.outcome in _TAKEN_OVER
        and (here := _host(told, first)) is not None
        and (there := _host(told, second)) is not None
        and here != there
        and second.written < first.send_by + ANSWER_S
    ]


def sent_though_kept(told: CaseRecord) -> list[str]:
    """An answer that gave something lay in a journal of the same host: it is replayed, never asked for
    again.

    Lets through: an answer that was kept only after a takeover had begun, as by a worker that
    was stopped with it in hand; one in a journal of another host, which is away; and one that no worker
    could replay for so long that no other worker waits for it.
    """
    return [
        f"{use.worker}'s answer lay in a journal of {host}, and was asked for again there"
        for use, first, second in _kept_in_time(told)
        if (host := _host(told, first)) is not None and host == _host(told, second)
    ]


def all_were_kept(told: CaseRecord) -> bool:
    """Of every use that gave something the answer was in a journal before another use was sent.
    False without another use: then it isn't known whether an answer came in time."""
    kept = [use for use, _, _ in _kept_in_time(told)]
    return all(use in kept for use in told.idp.uses if use.good)


def _kept_in_time(told: CaseRecord) -> Iterator[tuple[Use, AttemptRecord, AttemptRecord]]:
    fault = told.case.fault
    if told.case.scenario.unread:  # kept, and asked for again once it can be read
        return
    if fault is not None and fault.kind == "lost" and fault.point.startswith(JOURNAL):
        return  # its disk said no: the reply is in no journal, although its worker tried
    for worker, at in sorted(told.entries):
        uses = [it for it in told.idp.uses if it.worker == worker and it.came < at]
        use = max(uses, key=lambda it: it.came, default=None)
        if use is None or not use.good:
            continue  # a refusal is kept as well
        journal = told.journals.get(worker)
        mine = [it for it in told.attempts if it.journal == journal and it.written < use.came]
        its = max(mine, key=lambda it: it.written, default=None)
        for first, second in _one_after_another(told):
            until = first.send_by + REPLAY_S
            if first == its and first.outcome in _ANSWERED and at < second.opened < until:
                yield use, first, second


def _one_after_another(told: CaseRecord) -> Iterator[tuple[AttemptRecord, AttemptRecord]]:
    """Each attempt, and the next one for the same credential, where its provider takes it once."""
    attempts = sorted(told.attempts, key=lambda it: it.written)
    for number, first in enumerate(attempts):
        once = told.case.rotation is Rotation.STRICT or first.spends[0] == AttemptKind.CODE_EXCHANGE
        second = next((it for it in attempts[number + 1 :] if it.spends == first.spends), None)
        if once and second is not None:
            yield first, second


def _host(told: CaseRecord, attempt: AttemptRecord) -> str | None:
    """Where its journal is; None when that journal is unknown."""
    return next(
        (host_of(it, told.case.layout) for it, id in told.journals.items() if id == attempt.journal), None
    )
