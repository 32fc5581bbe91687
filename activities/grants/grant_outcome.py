"""The outcome of a token request: read its reply, install the tokens or record the failure."""

from abc import abstractmethod
from contextlib import suppress
from datetime import datetime

from activities.grants.orphaned_tokens import revoke_orphaned_tokens
from activities.grants.services import GrantServices
from activities.single_use.attempt import OutcomeHandler, SingleUseAttempt
from activities.support.clocks import obtained_at
from activities.support.provider_context import ProviderContext
from activities.support.transactions import commit_with_retries
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.activities import ConnectionCall, GrantResult
from evergrant_server.core.single_use.attempt import AttemptOutcome
from evergrant_server.store import Transaction
from providers.responses.raw_reply import RawReply


class GrantOutcome(OutcomeHandler[GrantResult]):
    """The steps that all flows share. A flow reads its replies and writes its rows."""

    def __init__(
        self,
        services: GrantServices,
        call: ConnectionCall,
        context: ProviderContext,
        *,
        provisional: bool = False,
    ) -> None:
        """`provisional`: a staged definition sent the request, whichever reads the reply."""
        self.services = services
        self.call = call
        self.context = context
        self.provisional = provisional or context.provisional
        self._used_previous_definition = False

    @abstractmethod
    def read(self, context: ProviderContext, reply: RawReply, came_at: datetime) -> TokenSet:
        """The tokens of a reply. Pure. Raises Failure."""

    @abstractmethod
    async def install(
        self, tx: Transaction, attempt: SingleUseAttempt, tokens: TokenSet, since: datetime
    ) -> GrantResult | None:
        """Install the tokens, obtained at `since`. None: their connection has ended."""

    @abstractmethod
    async def record_failure(
        self, tx: Transaction, attempt: SingleUseAttempt, failure: Failure, outcome: AttemptOutcome | None
    ) -> GrantResult:
        """Record a failure, and close the attempt if its outcome is known."""

    def judge(self, reply: RawReply, came_at: datetime) -> TokenSet:
        """The tokens of a reply. What a staged definition can't read, or calls a refusal in spite of a
        2xx status, is read with the definition before it: single-use tokens come once."""
        try:
            return self.read(self.context, reply, came_at)
        except Failure as failure:
            success = failure.code is ErrorCode.REPLY_UNREADABLE or 200 <= reply.status < 300
            if not self.context.provisional or not success:
                raise
            with suppress(Failure):
                tokens = self.read(self.context.with_previous_definition(), reply, came_at)
                self._used_previous_definition = True
                return tokens
            raise

    async def commit(self, attempt: SingleUseAttempt, tokens: TokenSet) -> GrantResult:
        """Compare-and-set until it holds: a revocation in between keeps its state."""
        services = self.services
        since = obtained_at(services.clock, attempt.row, tokens)
        result = await commit_with_retries(
            services.store, lambda tx: self.install(tx, attempt, tokens, since), attempt.keys
        )
        if result is None:
            return await revoke_orphaned_tokens(services, self.call, self.context, attempt.row, tokens)
        return result.model_copy(update={"used_previous_definition": self._used_previous_definition})

    async def fail(
        self, attempt: SingleUseAttempt, failure: Failure, outcome: AttemptOutcome | None
    ) -> GrantResult:
        return await commit_with_retries(
            self.services.store, lambda tx: self.record_failure(tx, attempt, failure, outcome)
        )
