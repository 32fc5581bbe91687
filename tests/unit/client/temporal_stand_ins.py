"""Workflows and activities of the plugin's tests: a connection that answers, and users of a lease."""

from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from evergrant import Lease
    from evergrant.temporal import Ensured, TokenInbox, ensure, lease, lease_blocking

    from evergrant_server.core.errors import ErrorCode
    from evergrant_server.core.ids import ConnectionId
    from evergrant_server.core.messages.connection import RequestToken, TokenReady
    from examples.pipeline.messages import SyncRequest


@workflow.defn(name="ConnectionWorkflow")
class StandInConnection:
    """Answers `request_token` with the server's own messages: a generation, or a problem."""

    @workflow.init
    def __init__(self, problem: ErrorCode | None) -> None:
        self._problem = problem
        self._requests: list[RequestToken] = []

    @workflow.run
    async def run(self, problem: ErrorCode | None) -> list[str]:
        await workflow.wait_condition(lambda: bool(self._requests))
        request = self._requests[0]
        ready = TokenReady(
            connection_id=ConnectionId(workflow.info().workflow_id.rpartition(":")[2]),
            generation=7,
            expires_at=None if problem else workflow.now() + timedelta(hours=1),
            problem=problem,
            again=False,
        )
        await workflow.get_external_workflow_handle(request.reply_to).signal("token_ready", ready)
        return [request.app, request.context.by, request.reply_to]

    @workflow.signal
    def request_token(self, request: RequestToken) -> None:
        self._requests.append(request)


@activity.defn
async def use_lease(how: str) -> object:
    return _use(how, await lease("crm", "alice"))


@activity.defn
def use_lease_in_a_thread(how: str) -> object:
    return _use(how, lease_blocking("crm", "alice"))


def _use(how: str, leased: Lease) -> object:
    token = leased.access_token
    match how:
        case "returns facts":
            return leased.generation
        case "returns the lease":
            return leased
        case "returns the token":
            return token
        case "nests the token":
            return {"headers": [{"authorization": f"Bearer {token}"}]}
        case "returns bytes":
            return b"\x00\x01" + token.encode()
        case "raises it":
            raise ValueError(f"the resource refused {token}")
        case "chains it":
            try:
                raise ValueError(f"the resource refused {token}")
            except ValueError as error:
                raise ApplicationError("went wrong", non_retryable=True) from error
        case "details it":
            raise ApplicationError("went wrong", {"token": token}, non_retryable=True)
        case "heartbeats it":
            activity.heartbeat({"progress": token})
            return None
        case _:
            raise AssertionError(how)


@workflow.defn
class RunOne:
    """Runs one activity by name, at most twice."""

    @workflow.run
    async def run(self, name: str, how: str) -> Any:
        return await workflow.execute_activity(
            name,
            how,
            start_to_close_timeout=timedelta(seconds=30),
            retry_policy=RetryPolicy(maximum_attempts=2, initial_interval=timedelta(milliseconds=1)),
        )


@workflow.defn
class ShortWait(TokenInbox):
    """Waits for a second only, and has an __init__ that doesn't call its base class's."""

    def __init__(self) -> None:
        self.limit = timedelta(seconds=1)

    @workflow.run
    async def run(self, request: SyncRequest) -> None:
        await self.token_for(request.connection, app="short-wait", timeout=self.limit)


@workflow.defn
class Waits:
    """Waits until alice's CRM has a token with these scopes."""

    @workflow.run
    async def run(self, scopes: list[str], timeout_s: float) -> Ensured:
        return await ensure("crm", "alice", scopes=tuple(scopes), timeout=timedelta(seconds=timeout_s))


ACTIVITIES = (use_lease, use_lease_in_a_thread)
