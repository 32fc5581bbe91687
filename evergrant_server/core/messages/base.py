"""What every message has in common: what it is built on, who requested it, what decided it."""

from typing import ClassVar

from evergrant_server.core.model import FrozenModel

SCHEDULE = "schedule"  # the requester of what a workflow's own timer causes
CLAIMED = "claimed:"  # before a requester that nothing proves


class Message(FrozenModel):
    """What crosses Temporal. Never with a secret."""


class Received(Message):
    """What a workflow receives: the input of a run, the argument of a signal or an update.

    `longest`: more bytes can't be read, for whoever may write to the namespace may send them.
    """

    longest: ClassVar[int] = 65_536


class RequestContext(Message):
    """Who requested it, and in which trace. Carried by every command."""

    by: str  # "app:<name>", "subject", "operator", "schedule"; after CLAIMED when nothing proves it
    trace_id: str = ""  # W3C trace id, 32 hex digits; "" when there is none
    span_id: str = ""  # the requesting span, 16 hex digits; "" when it isn't traced
    proof: str = ""  # that a process of Evergrant wrote `by` for this message; no secret

    def as_received(self) -> "RequestContext":
        """The context of a message that a run received: without a proof none is the run's own timer."""
        unproven = self.by == SCHEDULE and not self.proof
        return self.__replace__(by=CLAIMED + SCHEDULE) if unproven else self


class RequestMessage(Received):
    """A message that says who requested it."""

    context: RequestContext


class Provenance(Message):
    """Ties what an activity records to the history that decided it.

    `event_id` is the last history event the workflow had seen when it decided.
    """

    workflow_id: str
    run_id: str
    event_id: int
