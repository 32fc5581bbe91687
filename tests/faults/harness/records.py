"""What the database says of one case of the table."""

from dataclasses import dataclass

from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.single_use.attempt import Attempt


@dataclass(frozen=True)
class FinalState:
    """What the store says when a case is over."""

    connection: Connection
    consent: Consent | None
    refresh_token: str | None
    open_attempt: Attempt | None  # there is one at most
    wrongs: tuple[str, ...]  # what the witness saw
    crossed_a_refusal: bool = False  # an answer was installed beside a use that was heard to be refused


@dataclass(frozen=True)
class AttemptRecord:
    """One attempt, as its row tells it. Monotonic seconds: the case's machine is one."""

    journal: str
    spends: tuple[str, str, int]  # kind, credential, generation
    opened: float  # before it was decided that it may be sent
    written: float  # after that
    send_by: float
    outcome: str | None = None
