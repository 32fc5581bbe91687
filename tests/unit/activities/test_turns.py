"""Every activity that calls out takes a turn: found in the code of a worker's activities, and enforced."""

import inspect
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast, get_type_hints

import pytest
from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput

from activities.single_use.intent import CriticalSections
from activities.support import interceptor as interceptors
from activities.support.interceptor import ActivityInterceptor
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import Tenant, TrustedIssuerId
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.jobs import ACTIVITIES, FETCH_ISSUER_KEYS, REREAD_METADATA, REVIEW_PERMITS
from evergrant_server.core.messages.maintenance import FetchIssuerKeys, RereadMetadata
from evergrant_server.core.messages.work import TurnKey
from evergrant_server.crypto import KeyRing
from evergrant_server.egress import ANSWER_TIMEOUT_S, Egress, EgressPolicy
from evergrant_server.journal import Journal
from evergrant_server.settings import Settings
from evergrant_server.wiring.platform import Platform
from evergrant_server.wiring.worker_parts import build_worker_parts
from providers.definition.registry import Registry
from providers.requests.sender import Sender

OURS = ("activities", "evergrant_server", "providers")
ISSUER = FetchIssuerKeys(
    tenant=Tenant("acme"), issuer_id=TrustedIssuerId("iss_1"), context=RequestContext(by="operator")
)


@pytest.fixture
def methods(tmp_path: Path) -> dict[str, Any]:
    """A worker's activities by name, as it builds them."""
    settings = Settings(data_dir=tmp_path, database_url="sqlite:///none", public_url="https://e.example")
    none = cast(Any, None)
    platform = Platform(settings, SystemClock(), none, none, Registry.load(), none, none, none, none)
    parts = build_worker_parts(platform, CriticalSections(), Journal(tmp_path / "journals"))
    return {activity._Definition.must_from_callable(it).name or "": it for it in parts.activities}


def names_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_in(constant)


class Walk:
    """Follows a method through what its code names: its object's parts, their methods, and functions."""

    def __init__(self) -> None:
        self._seen: set[tuple[Any, ...]] = set()

    def calls_out(self, owners: list[Any], function: Any) -> bool:
        """True when it gets hold of what sends requests."""
        key = (function, *map(id, owners))
        ours = isinstance(function, types.FunctionType) and function.__module__.startswith(OURS)
        if not ours or key in self._seen:
            return False
        self._seen.add(key)
        names = set(names_in(function.__code__))
        parts = list(owners)
        for part in parts:  # which grows
            for value in (vars(part)[name] for name in names & set(getattr(part, "__dict__", {}))):
                if isinstance(value, Egress | Sender):
                    return True
                if type(value).__module__.startswith(OURS) and not any(value is it for it in parts):
                    parts.append(value)
        called = [([part], getattr(type(part), name, None)) for part in parts for name in names]
        called += [(parts, function.__globals__.get(name)) for name in names]
        return any(self.calls_out(on, getattr(it, "fget", it)) for on, it in called)


def test_every_activity_that_calls_out_takes_a_turn_and_no_other(methods: dict[str, Any]):
    calling = {name for name, it in methods.items() if Walk().calls_out([it.__self__], it.__func__)}
    assert calling == {name for name, row in ACTIVITIES.items() if row.turn is not None}


def test_what_calls_out_has_time_for_a_slow_answer():
    """Else Temporal would cut it and try again, for as long as the provider is slow."""
    calling = [row for row in ACTIVITIES.values() if row.turn is not None]
    assert [row.name for row in calling if row.limits.timeout.total_seconds() <= ANSWER_TIMEOUT_S] == []


def test_a_worker_has_each_activity_of_the_table_with_its_request_and_result(methods: dict[str, Any]):
    assert set(methods) == set(ACTIVITIES)
    for name, method in methods.items():
        hints, row = get_type_hints(method), ACTIVITIES[name]
        (request,) = (hints[parameter] for parameter in inspect.signature(method).parameters)
        result = hints["return"]
        assert (request, result) == (row.request, type(None) if row.result is None else row.result), name


class Inner(ActivityInboundInterceptor):
    """What an activity does, without Temporal's own steps before it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        return await self._work()


async def run(interceptor: ActivityInterceptor, name: str, request: Any, work: Callable[[], Any]) -> Any:
    environment = ActivityEnvironment()
    environment.info = environment.info.__class__(**{**vars(environment.info), "activity_type": name})
    call = ExecuteActivityInput(fn=work, args=[request], executor=None, headers={})
    return await environment.run(interceptor.intercept_activity(Inner(work)).execute_activity, call)


async def test_an_activity_without_a_turn_cant_call_out(ring: KeyRing):
    egress = Egress(EgressPolicy())

    async def call_out() -> str:
        egress.transport()
        return "called"

    interceptor = ActivityInterceptor(ring, SystemClock())
    with pytest.raises(ApplicationError, match="unexpected RuntimeError"):
        await run(interceptor, REVIEW_PERMITS.name, REVIEW_PERMITS.request(), call_out)
    assert await run(interceptor, FETCH_ISSUER_KEYS.name, ISSUER, call_out) == "called"
    egress.transport()  # outside of an activity


async def test_a_job_whose_tenant_has_its_share_is_put_off(monkeypatch: pytest.MonkeyPatch, ring: KeyRing):
    monkeypatch.setattr(interceptors, "PATIENCE_S", 0.01)
    interceptor = ActivityInterceptor(ring, SystemClock(), slots=3)

    async def nested() -> None:
        async def done() -> str:
            return "done"

        with pytest.raises(ApplicationError) as busy:
            await run(interceptor, FETCH_ISSUER_KEYS.name, ISSUER, done)
        assert busy.value.type == ErrorCode.WORKER_BUSY
        assert await run(interceptor, REREAD_METADATA.name, RereadMetadata(), done) == "done"

    await run(interceptor, FETCH_ISSUER_KEYS.name, ISSUER, nested)


def test_a_pass_over_all_tenants_takes_no_tenants_turn():
    assert REREAD_METADATA.turn is not None
    assert REREAD_METADATA.turn(RereadMetadata()) == TurnKey("")
