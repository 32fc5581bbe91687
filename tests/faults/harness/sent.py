"""Who may send a credential again: a rule of docs/protocol.md, judged by the rows of the attempts.

It holds whatever befell anybody, for what a provider takes once. It is judged by moments of one
machine, on which all of a case's workers run, and only by those that are certain: where it isn't known
whose journal it was, or when somebody decided, nothing is said.
"""

from collections.abc import Iterator

from evergrant_server.core.attempt import AttemptKind, Outcome
from evergrant_server.core.provider import Rotation
from tests.faults.harness.ground import Attempted
from tests.faults.harness.limits import ANSWER_S
from tests.faults.harness.walk import Told, host_of

_TAKEN_OVER = (Outcome.SUPERSEDED, Outcome.INSTALLED_LATE)


def taken_over_too_early(told: Told) -> list[str]:
    """By another host, which can't see what the first one does, while an answer could still come.

    Lets through: whatever comes after `send_by` and the longest answer, also when the first one was
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


def _one_after_another(told: Told) -> Iterator[tuple[Attempted, Attempted]]:
    """Each attempt, and the next one for the same credential, where its provider takes it once."""
    attempts = sorted(told.attempts, key=lambda it: it.written)
    for number, first in enumerate(attempts):
        once = told.case.rotation is Rotation.STRICT or first.spends[0] == AttemptKind.CODE_EXCHANGE
        second = next((it for it in attempts[number + 1 :] if it.spends == first.spends), None)
        if once and second is not None:
            yield first, second


def _host(told: Told, attempt: Attempted) -> str | None:
    """Where its journal is; None when nobody told of that journal."""
    return next(
        (host_of(it, told.case.layout) for it, id in told.journals.items() if id == attempt.journal), None
    )
