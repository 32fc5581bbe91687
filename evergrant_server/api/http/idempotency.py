"""`Idempotency-Key`: a repeated command is run once, and answered with the stored response."""

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
    """Status and body. `repr` omits the body, which may hold a connect link or an API key."""

    status: int
    body: str

    @classmethod
    def from_view(cls, status: int, view: BaseModel) -> "CommandResponse":
        return cls(status, view.model_dump_json())

    def response(self) -> Response:
        return Response(self.body, self.status, media_type="application/json")

    def __repr__(self) -> str:
        return f"CommandResponse({self.status}, ***)"


class IdempotentCommand:
    """One command of one caller. Without a key nothing is stored."""

    def __init__(self, request: Request, caller: Caller, key: str | None, body: BaseModel | None) -> None:
        sent = body.model_dump(mode="json") if body is not None else None
        described = json.dumps([request.method, request.url.path, sent], sort_keys=True)
        self._hash = hashlib.sha256(described.encode()).hexdigest()
        self._caller = caller
        self._key = key

    async def run(
        self,
        api: ApiContext,
        work: Callable[[Transaction], Awaitable[CommandResponse]],
        *,
        tries: int = ATTEMPTS,
    ) -> CommandResponse:
        """Run `work` in a transaction and deliver the outbox, or return the stored response.

        Raises Failure IDEMPOTENCY_CONFLICT, STORE_CONFLICT after `tries`, and those of `work`.
        """

        async def write(tx: Transaction) -> CommandResponse:
            stored = await self.stored_response(tx)
            if stored is not None:
                return stored
            return await self._store(tx, await work(tx), api.clock.now())

        response = await run_transaction(api.store, write, tries=tries)
        api.relay.notify()
        return response

    async def stored_response(self, tx: Transaction) -> CommandResponse | None:
        """The stored response, if any. Raises Failure IDEMPOTENCY_CONFLICT for another request's key."""
        if self._key is None:
            return None
        found = await tx.idempotency.find(self._caller.tenant, self._caller.app.id, self._key)
        if found is None:
            return None
        if found.request_hash != self._hash:
            raise Failure(ErrorCode.IDEMPOTENCY_CONFLICT)
        return CommandResponse(found.status, found.body)

    async def _store(self, tx: Transaction, response: CommandResponse, at: datetime) -> CommandResponse:
        if self._key is not None:
            await tx.idempotency.store(
                self._caller.tenant,
                self._caller.app.id,
                self._key,
                self._hash,
                response.status,
                response.body,
                at,
            )
        return response
