"""Requests that Schemathesis makes of our OpenAPI document, valid and invalid ones, to an API over SQLite.

Each answer has a documented status, type and shape and is no 5xx, and what the document doesn't accept is
refused. About half of the requests name things of a tenant with one of everything.
"""

import asyncio
import itertools
import math
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import schemathesis
from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.generation.case import Case
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi import checks

from evergrant_server.core.access import Action
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.connection import EnsureFresh, EnsureFreshResult
from evergrant_server.core.messages.integrations import DiscoveryResult
from tests.fakes.api import TENANT, Api, running_api
from tests.security.isolation.roles import is_last
from tests.security.isolation.routes import parameter
from tests.security.isolation.world import a_world

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
# Their items are judged one by one, and the answer has the outcome of each.
REPORTS_EACH = ("POST /v1/connections/import", "POST /v1/imports")
TOO_LARGE = 413  # a refusal that Schemathesis doesn't count as one
MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
_URL = "https://evergrant.test"


@dataclass
class Counts:
    """What was sent, and what came back."""

    cases: int = 0
    operations: set[str] = field(default_factory=set)
    statuses: Counter[int] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        answers = ", ".join(f"{status}: {count}" for status, count in sorted(self.statuses.items()))
        return f"{self.cases} cases of {len(self.operations)} operations ({answers})"


def fuzz(cases: int, seed_: int) -> Counts:
    """At least that many cases, spread over the operations. The same seed makes the same cases."""
    counts = Counts()
    with _running() as (run, api):
        own = run(a_world(api, TENANT))
        headers = {"Authorization": f"Bearer {run(api.app_with('caller', *Action, tenant=TENANT))}"}
        _script(api)
        schema = schemathesis.openapi.from_dict(api.app.openapi())
        operations = sorted((it.ok() for it in schema.get_all_operations()), key=lambda it: is_last(it.label))

        def send(case: Case) -> httpx2.Response:
            return run(api.client.send(_request(case)))

        # of what takes a path alone hardly anything can be invalid: tests/security/isolation has odd names
        kinds = [
            (operation, mode, _strategy(operation, mode, own, headers))
            for operation, mode in itertools.product(operations, MODES)
            if mode is MODES[0] or _takes_more_than_a_path(operation)
        ]
        for round_ in itertools.count(seed_):
            # some operations take few different requests: the rest comes in further rounds
            each = math.ceil((cases - counts.cases) / len(kinds))
            for operation, mode, strategy in kinds:
                try:
                    _examples(strategy, each, round_, _judge(send, mode, counts))
                except Unsatisfiable:
                    pass  # its body may be anything
                except FailureGroup as failure:
                    counts.failures[f"{operation.label} ({mode.value})"] = str(failure)
            if counts.cases >= cases:
                return counts
    raise AssertionError("unreachable")


@contextmanager
def _running() -> Iterator[tuple[Callable[..., Any], Api]]:
    """An API, and what runs it between the cases: Hypothesis calls no coroutines."""
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        context = running_api(Path(folder))
        api = runner.run(context.__aenter__())
        try:
            yield runner.run, api
        finally:
            runner.run(context.__aexit__(None, None, None))


def _script(api: Api) -> None:
    """Workflows that succeed: a 503 would be one of ours."""
    tokens = itertools.count(2)

    async def refresh(tenant: Tenant, id: ConnectionId, ask: EnsureFresh) -> EnsureFreshResult:
        installed = await api.install(await api.row(tenant, id), f"at-{next(tokens)}")
        return EnsureFreshResult(generation=installed.generation)

    async def discover(_: object) -> DiscoveryResult:
        return DiscoveryResult()

    api.link.on_refresh = refresh
    api.link.on_job[jobs.DISCOVER_ENDPOINTS.name] = discover


def _takes_more_than_a_path(operation: APIOperation) -> bool:
    places = {it.location.value for it in operation.iter_parameters() if it.name != "Authorization"}
    return bool(operation.body) or bool(places - {"path"})


def _strategy(
    operation: APIOperation, mode: Any, own: Mapping[str, str], headers: dict[str, str]
) -> st.SearchStrategy[Case]:
    named = {
        it.name: own.get(parameter(operation.path, it.name), "0")  # of a person's page: no such record
        for it in operation.iter_parameters()
        if it.location.value == "path"
    }
    invented = operation.as_strategy(generation_mode=mode, headers=headers)
    if not named:
        return invented if mode is MODES[1] else st.tuples(invented, st.booleans()).map(_naming(own))
    real = operation.as_strategy(generation_mode=mode, headers=headers, path_parameters=named)
    if mode is MODES[0]:
        real = st.tuples(real, st.booleans()).map(_naming(own))
    return st.one_of(real, invented)


def _naming(own: Mapping[str, str]) -> Callable[[tuple[Case, bool]], Case]:
    """Puts names and ids of the world into a valid request."""

    def named(drawn: tuple[Case, bool]) -> Case:
        case, wanted = drawn
        for part in (case.query, case.body) if wanted else ():
            for name in set(part) & set(own) if isinstance(part, dict) else ():
                if isinstance(part[name], str):
                    part[name] = own[name]
        return case

    return named


def _request(case: Case) -> httpx2.Request:
    sent = case.as_transport_kwargs(base_url=_URL)
    body = sent.get("data")
    as_text = {"content": body} if isinstance(body, bytes | str) else {"data": body}
    parts = {name: sent[name] for name in ("params", "json", "files", "cookies") if name in sent}
    try:
        return httpx2.Request(sent["method"], sent["url"], headers=dict(sent["headers"]), **parts, **as_text)
    except httpx2.InvalidURL:  # longer than httpx2 sends
        reject()


def _judge(send: Callable[[Case], httpx2.Response], mode: Any, counts: Counts) -> Callable[[Case], None]:
    def judged(case: Case) -> None:
        answer = send(case)
        counts.cases += 1
        counts.operations.add(case.operation.label)
        counts.statuses[answer.status_code] += 1
        refuses = mode is MODES[1] and case.operation.label not in REPORTS_EACH
        refuses = refuses and answer.status_code != TOO_LARGE
        case.validate_response(
            answer, checks=[*CHECKS, *([checks.negative_data_rejection] if refuses else [])]
        )

    return judged


def _examples(
    strategy: st.SearchStrategy[Case], count: int, seed_: int, judge: Callable[[Case], None]
) -> None:
    @seed(seed_)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(case: Case) -> None:
        judge(case)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of generators, about patterns that they can't use
        each()
