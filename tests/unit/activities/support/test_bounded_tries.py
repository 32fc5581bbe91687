"""What the code doesn't expect is tried a bounded number of times, named without its text, and counted."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import text
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput

from activities.support import transactions
from activities.support.interceptor import ActivityInterceptor
from activities.support.temporal import internal_after_last_try
from activities.support.transactions import commit_with_retries
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.activities import GrantResult, RevocationResult
from evergrant_server.store import Store, Transaction
from evergrant_server.telemetry import metrics
from tests.fakes.failures import fails
from tests.fakes.patience import PATIENCE_S

UNEXPECTED, CONFLICT = RuntimeError("rt-secret"), Failure(ErrorCode.STORE_CONFLICT, "it changed")


class Raises(ActivityInboundInterceptor):
    """Where the activity stands."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        raise self._error


async def run_as(name: str, attempt: int, error: Exception) -> Any:
    env = ActivityEnvironment()
    env.info = replace(env.info, activity_type=name, attempt=attempt)
    unused: Any = None
    mapper = ActivityInterceptor(unused, unused).intercept_activity(Raises(error))
    call = ExecuteActivityInput(
        fn=unused, args=[SimpleNamespace(tenant="acme", integration_id="int_1")], executor=None, headers={}
    )
    return await env.run(mapper.execute_activity, call)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The activity and the error of each try that was counted."""
    found: list[tuple[str, str]] = []
    monkeypatch.setattr(metrics, "count_unexpected", lambda activity, error: found.append((activity, error)))
    return found


@pytest.mark.parametrize(("error", "last"), [(UNEXPECTED, 3), (CONFLICT, 10)])
@pytest.mark.parametrize(
    ("name", "result"),
    [
        (jobs.REFRESH_GRANT.name, GrantResult(failure=ErrorCode.INTERNAL)),
        (jobs.EXCHANGE_CODE.name, GrantResult(failure=ErrorCode.INTERNAL)),
        (jobs.LOOK_UP_ACCOUNTS.name, GrantResult(failure=ErrorCode.INTERNAL)),
        (jobs.REVOKE_GRANT.name, RevocationResult(failure=ErrorCode.INTERNAL)),
        (jobs.BEGIN_REVOCATION.name, None),
    ],
)
async def test_the_workflow_goes_on_after_the_last_try(
    name: str, result: Any, error: Exception, last: int, counted: list[tuple[str, str]]
):
    with pytest.raises(ApplicationError) as raised:
        await run_as(name, last - 1, error)
    assert not raised.value.non_retryable
    assert await run_as(name, last, error) == result
    assert counted[-1][0] == name


async def test_every_unexpected_try_is_named_by_type_and_place_and_counted(
    counted: list[tuple[str, str]], caplog: pytest.LogCaptureFixture
):
    with pytest.raises(ApplicationError) as raised:
        await run_as("refresh_grant", 1, UNEXPECTED)
    assert counted == [("refresh_grant", "RuntimeError")]
    assert "activity failed: refresh_grant: unexpected RuntimeError at " in caplog.text
    assert "execute_activity" in caplog.text
    assert "rt-secret" not in caplog.text + str(raised.value)


@pytest.mark.parametrize("code", [ErrorCode.STORE_UNAVAILABLE, ErrorCode.SCHEMA_MISMATCH])
async def test_a_store_that_is_away_is_waited_for(code: ErrorCode, counted: list[tuple[str, str]]):
    with pytest.raises(ApplicationError) as raised:
        await run_as("refresh_grant", 1000, Failure(code))
    assert not raised.value.non_retryable
    assert counted == []


async def test_activities_of_no_connection_are_raised_after_any_number_of_tries():
    with pytest.raises(ApplicationError, match="RuntimeError"):
        await run_as(jobs.RECONCILE.name, 1000, UNEXPECTED)


@pytest.mark.parametrize(("attempt", "error"), [(2, RuntimeError), (3, Failure)])
async def test_an_activity_can_record_what_its_last_try_met(attempt: int, error: type[Exception]):
    def met() -> None:
        with internal_after_last_try():
            raise UNEXPECTED

    env = ActivityEnvironment()
    env.info = replace(env.info, attempt=attempt)
    with pytest.raises(error):
        env.run(met)


# --- commits ---------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "_MAX_WAIT_S", 0.001)
    monkeypatch.setattr(transactions, "_FIRST_WAIT_S", 0.001)


Work = Callable[[Transaction], Any]


@pytest.mark.usefixtures("impatient")
async def test_a_conflict_that_is_no_race_ends_the_commit(store: Store):
    """A unique index refuses the same row each time."""
    tries = 0

    async def twice(tx: Transaction) -> None:
        nonlocal tries
        tries += 1
        await tx.connection.execute(text("CREATE TABLE IF NOT EXISTS one (id INTEGER PRIMARY KEY)"))
        for _ in range(2):
            await tx.connection.execute(text("INSERT INTO one VALUES (1)"))

    async with asyncio.timeout(PATIENCE_S):
        with fails(ErrorCode.INTERNAL, "refuses the change each time"):
            await commit_with_retries(store, twice)
    assert tries == 10


@pytest.mark.parametrize("rule", ["id INTEGER NOT NULL", "id INTEGER, CHECK (id IS NOT NULL)"])
@pytest.mark.usefixtures("impatient")
async def test_a_row_that_can_never_be_stored_is_no_conflict(store: Store, rule: str):
    tries = 0

    async def never(tx: Transaction) -> None:
        nonlocal tries
        tries += 1
        await tx.connection.execute(text(f"CREATE TABLE one ({rule})"))
        await tx.connection.execute(text("INSERT INTO one VALUES (NULL)"))

    async with asyncio.timeout(PATIENCE_S):
        with fails(ErrorCode.INTERNAL):
            await commit_with_retries(store, never)
    assert tries == 1


@pytest.mark.usefixtures("impatient")
async def test_a_race_is_tried_again_until_it_commits(store: Store):
    tries = 0

    async def third(tx: Transaction) -> int:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise CONFLICT
        return tries

    assert await commit_with_retries(store, third) == 3


@pytest.mark.usefixtures("impatient")
async def test_a_store_that_stays_away_is_waited_for_and_said(store: Store, caplog: pytest.LogCaptureFixture):
    tries = 0

    async def away(tx: Transaction) -> int:
        nonlocal tries
        tries += 1
        if tries < 30:
            raise Failure(ErrorCode.STORE_UNAVAILABLE)
        return tries

    assert await commit_with_retries(store, away) == 30
    assert caplog.text.count("commit waits") == 2
    assert caplog.records[0].levelno == logging.WARNING
