"""One use of a single-use credential, and what follows from the reply to it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from activities.single_use.send_fence import SendFence
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import Failure
from evergrant_server.core.single_use.attempt import (
    Attempt,
    AttemptOutcome,
)
from evergrant_server.journal import JournalEntry, JournalReservation
from evergrant_server.store import UnwrappedKeys
from providers.responses.raw_reply import RawReply

T = TypeVar("T")


@dataclass(frozen=True)
class SingleUseAttempt:
    """One use of a credential: its intent is committed and the keys for its reply are unwrapped."""

    row: Attempt
    keys: UnwrappedKeys
    fence: SendFence | None = None  # None: the reply came from a journal
    entry: JournalEntry | None = None  # the reply, once a journal holds it

    @property
    def reservation(self) -> JournalReservation | None:
        """The journal space for its reply; None once the reply is in a journal."""
        return self.fence and self.fence.reservation

    def check(self) -> Callable[[], None]:
        """The last check before its bytes leave. Raises as `SendFence.check`."""
        assert self.fence is not None
        return self.fence.check()


class OutcomeHandler(ABC, Generic[T]):
    """What follows from a reply: the same for one that has just arrived and for a journaled one."""

    provisional = False  # sent with a staged definition, which the journal records
    spends_credential = True  # False: the same request may be sent again, with the same effect

    @abstractmethod
    def judge(self, reply: RawReply, came_at: datetime) -> TokenSet:
        """The tokens of the reply. Pure. Raises Failure."""

    @abstractmethod
    async def commit(self, attempt: SingleUseAttempt, tokens: TokenSet) -> T:
        """Write the tokens and the end of the attempt in one transaction."""

    @abstractmethod
    async def fail(self, attempt: SingleUseAttempt, failure: Failure, outcome: AttemptOutcome | None) -> T:
        """Write the failure. Without an `outcome` the credential may be spent: the attempt stays open."""
