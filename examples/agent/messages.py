"""The agent's input and what it asks for: names and texts."""

from dataclasses import dataclass

TASK_QUEUE = "agent"


@dataclass(frozen=True)
class NoteOrder:
    """Write this note for the subject after a while, once it was approved."""

    integration: str
    subject: str
    note: str
    write_in_s: float


@dataclass(frozen=True)
class Note:
    """One call of the agent's, at one connection."""

    connection_id: str
    text: str
