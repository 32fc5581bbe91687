"""A worker process: the real activities on a real store, told what to do by its parent.

It runs below the fork server (`warm`), with every limit shortened so that a case takes a second. What
Temporal would do, the parent does: it asks again until it is told an outcome.
"""

import asyncio
import copy
import errno
import json
import os
import select
import socket
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import httpcore2
import httpx2
from temporalio.activity import ActivityCancellationDetails
from temporalio.testing import ActivityEnvironment

from activities.single_use import journal_replay, pacing
from activities.single_use.intent import CriticalSections
from activities.support import temporal, transactions
from evergrant_server.access.callers import Caller, PresentedCredential
from evergrant_server.api.connections.commands import decide_confirmation
from evergrant_server.api.connections.models import ConfirmBody
from evergrant_server.api.http.call import ApiCall
from evergrant_server.core.access import Action, App, AuthenticationMethod, Permit
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.confirmation import ConfirmVerdict
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import KeyId, PermitId
from evergrant_server.core.messages.activities import ExchangeCode, GrantResult, LapseConsent, RefreshGrant
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use import attempt as protocol
from evergrant_server.core.single_use.attempt import TimeLimits
from evergrant_server.core.single_use.circuit_breaker import Admission
from evergrant_server.crypto.bundle import BUNDLE
from evergrant_server.crypto.keyfile import RootKeys
from evergrant_server.crypto.keyring import HeldKeys, KeyRing, Role
from evergrant_server.egress import Egress, EgressPolicy
from evergrant_server.egress.transport import default_tls_context
from evergrant_server.journal import Journal
from evergrant_server.settings import Settings
from evergrant_server.store import Store
from evergrant_server.store.database import engine
from evergrant_server.store.database.engine import Database, open_database
from evergrant_server.wiring.platform import Platform
from evergrant_server.wiring.worker_parts import WorkerParts, build_worker_parts
from providers.definition.registry import Registry
from providers.definition.schema_request import TokenLimit
from tests.faults.harness.instrumentation.passages import AFTER, Fault, passages
from tests.faults.harness.table.scenarios import CROOKED, JOURNALLED, LIMITED, NARROWING, ON_TRIAL, PROVING
from tests.faults.harness.workers import limits
from tests.faults.harness.workers.handles import ConfirmAndExchange, WorkerStart

WORKER = "x-harness-worker"
TLS = default_tls_context()
LIMITS = TimeLimits(
    send=limits.seconds(limits.SEND_S),
    answer=limits.seconds(limits.ANSWER_S),
    poll_interval=limits.seconds(limits.LOOK_AGAIN_S),
    replay=limits.seconds(limits.REPLAY_S),
)
_ADMIT = pacing.admit
_LEAVES_WITHIN_S = 0.3
PATIENT = TimeLimits(
    send=limits.seconds(limits.PATIENT_S),
    answer=limits.seconds(limits.PATIENT_S),
    poll_interval=LIMITS.poll_interval,
    replay=LIMITS.replay,
)
_ORDERS = {
    "refresh_grant": RefreshGrant,
    "exchange_code": ExchangeCode,
    "confirm_and_exchange": ConfirmAndExchange,
    "lapse_consent": LapseConsent,
    "drain": RefreshGrant,
}
_EXCHANGE = set(ExchangeCode.model_fields)
registry: list[Registry] = []  # read once, by the fork server
databases: dict[str, Database] = {}  # with their compiled statements, from the rehearsal


def read_catalogue() -> None:
    """The catalogue, and a definition that loads and can't be used."""
    found = Registry.load()
    generic = found.get("generic")
    found._specs[CROOKED] = generic.model_copy(update={"name": CROOKED, "auth_modes": ("device_code",)})
    found._specs[ON_TRIAL] = generic.model_copy(update={"name": ON_TRIAL})
    limit = TokenLimit(requests=100_000, window_s=1, per="client")
    found._specs[LIMITED] = generic.model_copy(update={"name": LIMITED, "token_limit": limit})
    found._specs[NARROWING] = generic.model_copy(update={"name": NARROWING, "down_scoping": "refresh"})
    found._specs[PROVING] = generic.model_copy(update={"name": PROVING, "dpop": True})
    registry.append(found)


def shorten() -> None:
    """Every limit of the path, in this process alone."""
    for module, name, value in (
        (temporal, "_INTERVAL_S", limits.BEAT_S),
        (journal_replay, "_OVERDUE_S", limits.OVERDUE_S),
        (journal_replay, "_RETRY_SET_ASIDE_S", limits.LOOK_ASIDE_S),
        (transactions, "_MAX_WAIT_S", limits.COMMIT_AGAIN_S),
        (protocol, "MAX_SENDS", limits.MOST_SENDS),
    ):
        getattr(module, name)  # a renamed limit would be shortened in vain
        setattr(module, name, value)
    engine._POSTGRES_SETTINGS.update(
        statement_timeout=str(limits.DATABASE_MS),
        lock_timeout=str(limits.DATABASE_MS),
        idle_in_transaction_session_timeout=str(limits.DATABASE_MS),
    )


class NamedTransport(httpx2.AsyncBaseTransport):
    """Says which worker a request came from, for the records of the other end."""

    def __init__(self, inner: httpx2.AsyncBaseTransport, name: str) -> None:
        self._inner, self._name = inner, name

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        request.headers[WORKER] = self._name
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


def parts_of(start: WorkerStart) -> Platform:
    """A worker's parts without Temporal."""
    settings = Settings(
        data_dir=start.journals.parent,
        database_url=start.database_url,
        key_file=start.key_file,
        public_url=start.public_url,
        egress_allow=(start.allow,),
    )
    ring = KeyRing.open(start.key_file, Role.WORKER)
    clock = SystemClock()
    if start.database_url not in databases:
        databases[start.database_url] = open_database(start.database_url)
    store = Store(databases[start.database_url], ring, clock)
    nothing = cast(Any, None)
    catalogue = _repaired_later(start.repaired_after_s) if start.repaired_after_s else registry[0]
    return Platform(settings, clock, ring, store, catalogue, nothing, nothing, nothing, nothing)


def _repaired_later(after_s: float) -> Registry:
    """A catalogue whose definition takes every token for one of a kind that it doesn't know, for a while."""
    broken = copy.copy(registry[0])
    broken._specs = dict(registry[0]._specs)
    generic = broken.get("generic")
    response = generic.response.model_copy(update={"bearer_token_types": ("of another kind",)})
    broken._specs["generic"] = generic.model_copy(update={"response": response})
    asyncio.get_running_loop().call_later(after_s, lambda: broken._specs.update(generic=generic))
    return broken


def _queued(circuit: Any, *_: Any) -> tuple[Any, Admission]:
    return circuit, Admission(limits.BEAT_S)


def work_of(parts: Platform, sections: CriticalSections, journal: Journal, start: WorkerStart) -> WorkerParts:
    longest = limits.PATIENT_S if start.patient else limits.HTTP_S

    def egress(policy: EgressPolicy, **_: object) -> Egress:
        def named(inner: httpx2.AsyncBaseTransport) -> httpx2.AsyncBaseTransport:
            return NamedTransport(inner, start.name)

        return Egress(policy, tls=TLS, connect_timeout_s=longest, answer_timeout_s=longest, wrapper=named)

    pacing.admit = _queued if start.queued else _ADMIT
    return build_worker_parts(parts, sections, journal, PATIENT if start.patient else LIMITS, egress)


def lost(fault: Fault) -> Exception | None:
    """What is heard instead of an answer that got lost on its way."""
    if fault.answered_by == "store":
        return Failure(ErrorCode.STORE_UNAVAILABLE, "the answer was lost", retry_after=0.1)
    if fault.answered_by == "unexpected":
        return RuntimeError("a library's mistake")
    if fault.answered_by == "disk":
        return OSError(errno.EIO, "the answer was lost")
    if fault.point.startswith("providers"):
        return httpx2.ReadError("the answer was lost")
    if "network" in fault.point:
        return httpcore2.ConnectError("the answer was lost")
    return httpcore2.ReadError("the answer was lost")


def call_of(parts: Platform, order: ConfirmAndExchange) -> ApiCall:
    """The request of an app that may connect everyone."""
    owned = {"tenant": order.tenant, "created_at": parts.clock.now()}
    app = App(id=order.app_id, name="web", **owned)
    credential = PresentedCredential(
        KeyId("key_1"), AuthenticationMethod.API_KEY, parts.clock.now() + timedelta(days=1)
    )
    permit = Permit(
        id=PermitId("per_1"), app_id=app.id, name="all", integration="*", actions=(Action.CONNECT,), **owned
    )
    silent = SimpleNamespace(notify=lambda: None, note_use=lambda *_: None)
    api = SimpleNamespace(
        store=parts.store, clock=parts.clock, registry=parts.registry, relay=silent, ledger=silent
    )
    return ApiCall(cast(Any, api), Caller(app, credential, (permit,), b""), order.context, cast(Any, None))


class Child:
    """Lives through one case after another, and answers its parent's orders until the socket closes.

    Between two cases nothing is left but the imports and the sessions with the database: store, keys,
    journal and sections are each case's own. It ends when anything of a case goes on.
    """

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._environment: ActivityEnvironment | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        self._was_stopped = False
        passages.tell = self._tell
        passages.cut = self._cut
        passages.keys = self._lose_keys
        passages.lost = lost

    def _say(self, message: dict[str, Any]) -> None:
        left = memoryview(json.dumps(message).encode() + b"\n")
        while left:  # a busy parent may be slow to read
            select.select([], [self._line], [])
            left = left[os.write(self._line.fileno(), left) :]

    def _tell(self, fault: Fault) -> None:
        self._was_stopped |= fault.kind == "stop"
        self._say({"at": fault.model_dump(), "kept": passages.times(JOURNALLED, AFTER)})

    def _cut(self) -> None:
        """What Temporal does at start-to-close: it cancels the activity, not what it awaits."""
        if self._environment is not None:
            self._environment.cancel(ActivityCancellationDetails(timed_out=True))

    def _lose_keys(self) -> None:
        """The key service was away for too long: the ring holds nothing until it is back."""
        file = self._ring.file
        assert file is not None
        why = Failure(ErrorCode.KEY_UNAVAILABLE, "the key service is away", retry_after=limits.BEAT_S)
        lost_roots = {purpose: RootKeys(roots.current, {}) for purpose, roots in file.purposes.items()}
        ids = [id for roots in file.purposes.values() for id in roots.keys]
        self._ring.hold(HeldKeys(lost_roots, None, dict.fromkeys([BUNDLE, *ids], why)))
        back = HeldKeys(file.purposes, file)
        self._loop.call_soon_threadsafe(self._loop.call_later, limits.KEYS_AWAY_S, self._ring.hold, back)

    async def run(self) -> None:
        self._loop = asyncio.get_running_loop()
        reader, _ = await asyncio.open_connection(sock=self._line.dup())
        while line := await reader.readline():
            told = json.loads(line)
            if "start" in told:
                self._begin(WorkerStart.model_validate(told["start"]))
            elif "leave" in told:
                if not await self._leaves():
                    return
            else:
                task = asyncio.create_task(self._obey(told))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)

    def _begin(self, start: WorkerStart) -> None:
        self._environment, self._was_stopped = None, False
        passages.start(start.plan)
        self._database_url = start.database_url
        self._sections = CriticalSections()
        self._journal = Journal(start.journals)
        parts = parts_of(start)
        self._ring = parts.ring
        work = work_of(parts, self._sections, self._journal, start)
        self._does: dict[str, Callable[..., Any]] = {it.__name__: it for it in work.activities}
        self._does |= {"drain": self._drain, "confirm_and_exchange": self._confirm_and_exchange}
        self._parts = parts
        self._sweeping = asyncio.create_task(_sweep(work, start.sweeps_after_s))
        self._say({"pid": os.getpid(), "journal": self._journal.id})

    async def _leaves(self) -> bool:
        """The case is over. False when something of it goes on: then this process may not live on."""
        passages.plan = []
        self._sweeping.cancel()
        await asyncio.wait({self._sweeping})
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=_LEAVES_WITHIN_S)
        if len(asyncio.all_tasks()) > 1:
            return False
        if self._was_stopped:  # the database may have ended its sessions meanwhile
            await databases[self._database_url].close()
        self._journal.release()
        self._say({"left": True})
        return True

    async def _drain(self, order: Any) -> GrantResult:
        await self._sections.drain(limits.seconds(limits.DRAIN_S))
        return GrantResult()

    async def _confirm_and_exchange(self, order: ConfirmAndExchange) -> GrantResult:
        """The API and the worker in one process: a kill ends both."""
        body = ConfirmBody(code=Secret(order.code), subject=order.subject)
        call = call_of(self._parts, order)
        _, verdict = await decide_confirmation(call, order.connection_id, body)
        if verdict is ConfirmVerdict.MISMATCH:
            return GrantResult(failure=ErrorCode.SUBJECT_MISMATCH, consent_over=True)
        if verdict is ConfirmVerdict.EXPIRED:
            return GrantResult(failure=ErrorCode.CONFIRM_EXPIRED)
        return await self._does["exchange_code"](
            ExchangeCode.model_validate(order.model_dump(include=_EXCHANGE))
        )

    async def _obey(self, order: dict[str, Any]) -> None:
        call = _ORDERS[order["do"]].model_validate(order["call"])
        environment = ActivityEnvironment()
        environment.info = replace(environment.info, started_time=SystemClock().now())  # by Temporal's clock
        if order["do"] != "drain":
            self._environment = environment
        answer: dict[str, Any] = {"id": order["id"]}
        try:
            news: GrantResult = await environment.run(self._does[order["do"]], call)
            answer["news"] = news.model_dump(mode="json")
        except Failure as failure:
            answer["raised"] = failure.code
        except asyncio.CancelledError:
            answer["raised"] = "cut"
        except Exception as unexpected:
            answer["raised"] = f"unexpected {type(unexpected).__name__}: {unexpected}"
        answer["passed"] = passages.log
        passages.log = []
        self._say(answer)


async def _sweep(work: WorkerParts, after_s: float) -> None:
    await asyncio.sleep(after_s)
    await work.replayer.run(limits.seconds(limits.SWEEP_S))


def main(line: socket.socket) -> None:
    asyncio.run(Child(line).run())


def rehearse(line: socket.socket) -> None:
    """The same in the fork server itself, so that what is slow the first time is done."""

    async def rehearsal() -> None:
        await Child(line).run()
        for it in databases.values():
            await it.close()

    asyncio.run(rehearsal())
    line.close()
