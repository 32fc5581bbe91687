"""What every message that crosses Temporal has in common."""

from pydantic import BaseModel, ConfigDict


class Message(BaseModel):
    model_config = ConfigDict(frozen=True)


class RequestContext(Message):
    """Who requested it, and in which trace. Carried by every command."""

    by: str  # "app:<name>", "subject", "operator", "schedule"
    trace_id: str = ""  # W3C trace id, 32 hex digits; "" when there is none
    span_id: str = ""  # the requesting span, 16 hex digits; "" when it isn't traced


class Provenance(Message):
    """Ties what an activity records to the history that decided it.

    `event_id` is the last history event the workflow had seen when it decided.
    """

    workflow_id: str
    run_id: str
    event_id: int
