"""`Idempotency-Key` on commands: the same request twice is one command with one answer."""

import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from evergrant_server.api.http.authentication import Caller
from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.transactions import ATTEMPTS, run_transaction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.store import Transaction


@dataclass(frozen=True)
class CommandResponse:
    """A status and a body's text. It may hold a connect link or a new key, so it doesn't print."""

    status: int
    body: str

    @classmethod
    def from_view(cls, status: int, view: BaseModel) -> "CommandResponse":
        return cls(status, view.model_dump_json())

    def response(self) -> Response:
        return Response(self.body, self.status, media_type="application/json")

    def __repr__(self) -> str:
        return f"Answer({self.status}, ***)"


class IdempotentCommand:
    """One command of one caller. Without a key nothing is recalled and nothing remembered."""

    def __init__(self, request: Request, caller: Caller, key: str | None, body: BaseModel | None) -> None:
        said = body.model_dump(mode="json") if body is not None else None
        asks = json.dumps([request.method, request.url.path, said], sort_keys=True)
        self._hash = hashlib.sha256(asks.encode()).hexdigest()
        self._caller = caller
        self._key = key

    async def run(
        self,
        parts: ApiContext,
        work: Callable[[Transaction], Awaitable[CommandResponse]],
        *,
        tries: int = ATTEMPTS,
    ) -> CommandResponse:
        """What `work` answers in a transaction that is tried again after a conflict, or what it answered
        before. Raises Failure IDEMPOTENCY_CONFLICT, STORE_CONFLICT, and whatever `work` raises."""

        async def write(tx: Transaction) -> CommandResponse:
            recalled = await self.stored_response(tx)
            if recalled is not None:
                return recalled
            return await self.store_response(tx, await work(tx), parts.clock.now())

        return await run_transaction(parts.store, write, tries=tries)

    async def stored_response(self, tx: Transaction) -> CommandResponse | None:
        """The answer given before. Raises Failure IDEMPOTENCY_CONFLICT for another request's key."""
        if self._key is None:
            return None
        found = await tx.idempotency.find(self._caller.tenant, self._caller.app.id, self._key)
        if found is None:
            return None
        if found.request_hash != self._hash:
            raise Failure(ErrorCode.IDEMPOTENCY_CONFLICT)
        return CommandResponse(found.status, found.body)

    async def store_response(self, tx: Transaction, answer: CommandResponse, at: datetime) -> CommandResponse:
        """Keep the answer, in the transaction that made it true."""
        if self._key is not None:
            await tx.idempotency.store(
                self._caller.tenant,
                self._caller.app.id,
                self._key,
                self._hash,
                answer.status,
                answer.body,
                at,
            )
        return answer
