"""Leases of a pair that was judged a moment ago, answered before the application: the product's hot loop.

A pair is a credential with a request: what `POST /v1/lease` or `POST /v1/connections/{id}/token` came with.
When the application has leased to one, the pair is remembered for as long as its caller and its row are
cached, a minute at most. Its next lease needs no parsing and no judging: an open request is counted, the
ledger looks once more at every revision and commits the record, and the token is opened.

Nothing is left out but that. What could be judged otherwise the second time isn't remembered (`_pair_of`),
and what isn't plain goes on to the application as it came, its body replayed: then the answer, its headers
and its record are the application's. tests/unit/api/leases/test_judged_pairs.py sends the same requests both
ways.
"""

import asyncio
import hashlib
from asyncio import Task
from contextlib import suppress
from datetime import datetime
from json.encoder import encode_basestring_ascii as quoted
from types import SimpleNamespace
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evergrant_server.access.callers import Caller
from evergrant_server.access.context import ApiContext
from evergrant_server.access.decision import JUDGED, JudgedLease, LeaseIssuer
from evergrant_server.access.judged_request import JudgedRequest
from evergrant_server.access.refusals import LeaseRequest
from evergrant_server.api.http.middleware import ARRIVED, LEASE_SLACK_S
from evergrant_server.api.leases.routes import LEASE_PATH, TOKEN_PATH, rest_of_lease
from evergrant_server.audit.lease_ledger import StaleClaim
from evergrant_server.audit.lease_record import LeaseFacts
from evergrant_server.core.bounded import Bounded
from evergrant_server.core.clock import CLOCK_SKEW
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.credentials import DPOP_TOKEN_TYPE
from evergrant_server.core.errors import Failure
from evergrant_server.crypto import ReadySeal
from evergrant_server.telemetry import traces
from evergrant_server.telemetry.metrics import LeaseCells, lease_cells
from evergrant_server.telemetry.traces import Trace, begin_trace, new_trace

_MOST_PAIRS = 20_000
_LONGEST_LENGTH = 4  # digits: no lease needs a body of 10 kB
_BY_ID = TOKEN_PATH.split("{connection_id}")
_NAMES_ROUTE, _ID_ROUTE = SimpleNamespace(path=LEASE_PATH), SimpleNamespace(path=TOKEN_PATH)  # for spans
_IDS = (b"traceparent", b"x-request-id")
_NO_STORE, _JSON = (b"cache-control", b"no-store"), (b"content-type", b"application/json")


class JudgedPair(NamedTuple):
    """What the next lease of a pair is made from. The token stays sealed."""

    caller: Caller
    request: LeaseRequest
    facts: LeaseFacts
    counted: LeaseCells
    token: ReadySeal
    rest: str  # of the answer, behind the token and the place of its record
    since: datetime
    until: datetime
    expires_at: datetime | None


class JudgedPairs:
    """The pairs of one process, and their leases. `leased` counts those."""

    def __init__(self, api: ApiContext, issuer: LeaseIssuer) -> None:
        self._api, self._issuer = api, issuer
        self._pairs = Bounded[bytes, JudgedPair](_MOST_PAIRS)
        api.store.servers.on_failover(self._pairs.clear)
        self.leased = 0

    def get(self, key: bytes) -> JudgedPair | None:
        """The pair with this key, unless the application must judge it anew."""
        pair = self._pairs.get(key)
        if pair is None or pair.since <= self._api.clock.now() < pair.until:
            return pair
        del self._pairs[key]
        return None

    async def lease(self, key: bytes, pair: JudgedPair, scope: Scope, trace: Trace) -> bytes | None:
        """Record a lease, and return the body of its answer. None: it wasn't recorded, and the application
        has to judge the request."""
        app_id = pair.facts.app_id
        if pair.token.hold.over or not self._issuer.limits.open(app_id):
            return None
        now = self._api.clock.now()
        try:
            place = await self._api.ledger.record_pair(pair.facts, now, trace.trace_id)
            if self._issuer.leased.reaches_alarm(app_id, pair.facts.connection_id, now):
                await self._raise_alarm(pair.caller, scope, trace)
            token = pair.token.open().decode()
        except StaleClaim:
            self._pairs.pop(key, None)
            self._issuer.forget(pair.caller, pair.request)
            return None
        except Failure:
            self._pairs.pop(key, None)
            return None
        finally:
            self._issuer.limits.close(app_id)
        left = None if pair.expires_at is None else (pair.expires_at - self._api.clock.now()).total_seconds()
        pair.counted.count(left)
        self.leased += 1
        return f'{{"access_token": {quoted(token)}, "audit": "{place}", {pair.rest}'.encode()

    def remember(self, key: bytes, judged: JudgedLease) -> None:
        """Keep what the application has leased, if its next lease is judged in the same way."""
        with suppress(Failure):  # a seal that can't be opened: the application has said so
            pair = self._pair_of(judged)
            if pair is not None:
                self._pairs[key] = pair

    def _pair_of(self, judged: JudgedLease) -> JudgedPair | None:
        """None for what the caller's address, another's authority, or a count decides; for what is recorded
        or answered differently each time; and for what is seldom and not worth the doubt."""
        caller, row, grant, claim = judged.caller, judged.row, judged.row.grant, judged.facts.claim
        if (
            grant is None
            or row.state is not LifecycleState.ACTIVE
            or grant.token_type == DPOP_TOKEN_TYPE
            or judged.request.min_ttl is not None
            or caller.names_sources
            or caller.session is not None
            or caller.authorization is not None
            or caller.delegated is not None
            or caller.credential.confirmation is not None
            or claim.observed
            or self._issuer.limits.has_quota(caller.app)
        ):
            return None
        return JudgedPair(
            caller,
            judged.request,
            judged.facts,
            lease_cells(row.provider),
            row.ready_token(self._api.ring),
            rest_of_lease(row),
            grant.obtained_at - CLOCK_SKEW,  # one from the future is due
            judged.until,
            grant.expires_at,
        )

    async def _raise_alarm(self, caller: Caller, scope: Scope, trace: Trace) -> None:
        context = trace.request_context(caller.by)
        await self._issuer.raise_alarm(JudgedRequest(self._api, caller, context, Request(scope)))


class PairMiddleware:
    """ASGI middleware around all of the application but its span: answers the leases of judged pairs."""

    def __init__(self, app: ASGIApp, pairs: JudgedPairs, version: str, wait_s: float) -> None:
        self._app, self._pairs = app, pairs
        self._in_span = traces.is_enabled()
        self._deadlines = _Deadlines(wait_s + LEASE_SLACK_S)
        self._headers = [  # as `Envelope` sends them, in its order
            (b"evergrant-version", version.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        credential = _credential_of(scope)
        if credential is None:
            await self._app(scope, receive, send)
            return
        task = asyncio.current_task()
        assert task is not None
        messages: list[Message] = []
        key = answer = trace = None
        begun = self._deadlines.begin(task)
        try:
            messages.append(await receive())
            body = _whole_body(messages[0], credential.length)
            if body is not None:
                begun = scope[ARRIVED] = self._deadlines.begin(task)
                key = _key_of(scope["path"], credential.text, body)
                if pair := self._pairs.get(key):
                    named = self._in_span or credential.names_ids
                    trace = begin_trace(scope) if named else new_trace(scope)
                    answer = await self._pairs.lease(key, pair, scope, trace)
        except asyncio.CancelledError:
            if not self._deadlines.has_ended(task):
                raise
            scope[ARRIVED] = begun  # too long ago: `Deadline` will say so
        finally:
            self._deadlines.end(task)
        if trace is not None and answer is not None:
            if self._in_span:
                scope["route"] = _NAMES_ROUTE if scope["path"] == LEASE_PATH else _ID_ROUTE
            await self._respond(send, answer, trace)
        elif key is None:
            await self._app(scope, _replayed(messages, receive), send)
        else:
            scope[JUDGED] = None
            await self._app(scope, _replayed(messages, receive), send)
            if (judged := scope[JUDGED]) is not None:
                self._pairs.remember(key, judged)

    async def _respond(self, send: Send, body: bytes, trace: Trace) -> None:
        length, id = (b"content-length", b"%d" % len(body)), (b"x-request-id", trace.request_id.encode())
        headers = [_NO_STORE, length, _JSON, id, *self._headers]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class _Credential(NamedTuple):
    """The header that proves the caller, and of the request's others what matters here."""

    text: bytes
    length: int  # of the body
    names_ids: bool


def _credential_of(scope: Scope) -> _Credential | None:
    """None: not a plain request for a lease."""
    if scope["type"] != "http" or scope["method"] != "POST" or scope["query_string"]:
        return None
    path: str = scope["path"]
    if path != LEASE_PATH and not (path.startswith(_BY_ID[0]) and path.endswith(_BY_ID[1])):
        return None
    text, length, names_ids = None, None, False
    for name, value in scope["headers"]:
        if name == b"authorization":
            if text is not None:
                return None
            text = value
        elif name == b"content-length":
            if length is not None or not value.isdigit() or len(value) > _LONGEST_LENGTH:
                return None
            length = int(value)
        elif name == b"transfer-encoding":
            return None
        elif name in _IDS:
            names_ids = True
    return None if text is None or length is None else _Credential(text, length, names_ids)


def _whole_body(message: Message, length: int) -> bytes | None:
    """None: it isn't all that was declared, or the caller has gone."""
    body: bytes = message.get("body", b"")
    return body if message["type"] == "http.request" and len(body) == length else None


def _key_of(path: str, credential: bytes, body: bytes) -> bytes:
    """The SHA-256 of what an answer depends on, from which no other request can be made."""
    place = f"{len(path)} {len(credential)} {path}".encode()
    return hashlib.sha256(b"%b%b%b" % (place, credential, body)).digest()


def _replayed(messages: list[Message], receive: Receive) -> Receive:
    """Receive what was received already, and then the rest."""

    async def receiving() -> Message:
        return messages.pop(0) if messages else await receive()

    return receiving


class _Deadlines:
    """Ends the tasks that take too long, as `asyncio.timeout` does, with one timer for all of them: a timer
    for each request takes as long as its hash and its seal together."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._begun: dict[Task[Any], float] = {}  # in order
        self._ended: set[Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, task: Task[Any]) -> float:
        """Give the task its time from now on. `end` must follow."""
        loop = task.get_loop()
        now = loop.time()
        self._begun.pop(task, None)
        self._begun[task] = now
        if self._timer is None:
            self._timer = loop.call_at(now + self._seconds, self._look)
        return now

    def end(self, task: Task[Any]) -> None:
        self._begun.pop(task, None)

    def has_ended(self, task: Task[Any]) -> bool:
        """Whether the task was cancelled because its time was over. It goes on then."""
        if task not in self._ended:
            return False
        self._ended.remove(task)
        task.uncancel()
        return True

    def _look(self) -> None:
        loop, self._timer = asyncio.get_running_loop(), None
        late = loop.time() - self._seconds
        for task, begun in list(self._begun.items()):
            if begun > late:
                self._timer = loop.call_at(begun + self._seconds, self._look)
                break
            del self._begun[task]
            self._ended.add(task)
            task.cancel()
