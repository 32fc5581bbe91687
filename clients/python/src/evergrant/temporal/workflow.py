"""For workflow code: wait until a connection has a token, for days if a person has to consent.

`ensure` asks Evergrant's API, from any worker with the plugin, in any namespace and any cluster:

    await ensure("crm", "alice", scopes=("contacts.read",), timeout=timedelta(days=3))

`TokenInbox` asks the connection's workflow, in Evergrant's own namespace, and is told at once. Either
answer holds facts; the token itself is leased in the activity that uses it. Imports the standard library
and temporalio only, so it runs inside the sandbox.

    @workflow.defn
    class SyncContacts(TokenInbox):
        @workflow.run
        async def run(self, connection: str) -> int:
            await self.token_for(connection, app="pipeline")
            return await workflow.execute_activity(fetch, ...)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from temporalio import exceptions, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, FailureError, RetryState

ENSURE = "evergrant.ensure"
TOKEN_READY = "token_ready"
REQUEST_TOKEN = "request_token"


@dataclass(frozen=True)
class RequestContext:
    """The requester and its trace (W3C trace id, "" when there is none)."""

    by: str
    trace_id: str = ""


@dataclass(frozen=True)
class RequestToken:
    """The signal to the connection's workflow, which answers the workflow `reply_to`."""

    app: str
    reply_to: str
    context: RequestContext


@dataclass(frozen=True)
class TokenReady:
    """The signal back. `problem` is a failure code when there is no usable grant.

    `again`: a person has to act, and another answer follows when there is a token.
    """

    connection_id: str
    generation: int
    expires_at: datetime | None = None
    problem: str | None = None
    again: bool = False


class TokenNotReady(ApplicationError):
    """There is no fresh grant; fails the workflow unless it is caught. `code` says why.

    `again`: `TokenInbox.token_repaired` can wait for it.
    """

    def __init__(self, connection_id: str, code: str, *, again: bool = False) -> None:
        super().__init__(f"{connection_id} has no fresh grant: {code}", code, type=code, non_retryable=True)
        self.connection_id = connection_id
        self.code = code
        self.again = again


@dataclass(frozen=True)
class EnsureToken:
    """The input of the activity `evergrant.ensure`: names alone. `hold`: a token, not only a connection."""

    integration: str
    subject: str
    label: str
    scopes: tuple[str, ...] | None
    hold: bool = True


@dataclass(frozen=True)
class Ensured:
    """There is a token, with the requested scopes: facts about the grant that brought it."""

    connection_id: str
    generation: int
    expires_at: datetime | None
    scopes: tuple[str, ...]


async def ensure(
    integration: str,
    subject: str,
    *,
    label: str = "default",
    scopes: tuple[str, ...] | None = None,
    hold: bool = True,
    timeout: timedelta = timedelta(days=7),
) -> Ensured:
    """Wait until the subject's connection has a token with `scopes`: for days, if a person has to consent.

    An activity of `EvergrantPlugin` asks Evergrant's API, on this workflow's task queue. While it waits it
    is between two tries, at most a minute apart: nothing runs, and the history doesn't grow. The plugin's
    `on_consent_required` gets each new link for the subject. An app that calls through the gateway has no
    permit for tokens: with `hold=False` the activity waits for the connection and leases nothing; the app
    needs the action `connect`. Raises TokenNotReady: its code is `timeout`
    after `timeout`, the reason when the connection was denied or revoked meanwhile, or the code of a refusal
    that no consent ends.
    """
    wanted = EnsureToken(integration, subject, label, scopes, hold)
    try:
        return await workflow.execute_activity(
            ENSURE,
            wanted,
            result_type=Ensured,
            start_to_close_timeout=timedelta(minutes=2),
            schedule_to_close_timeout=timeout,
            retry_policy=RetryPolicy(maximum_interval=timedelta(minutes=1)),
            summary=f"{integration} for {subject}",
        )
    except ActivityError as error:
        raise _not_ready(error, f"{integration} for {subject}") from error


def _not_ready(error: ActivityError, connection: str) -> Exception:
    """What ended the wait: time, a refusal, or a failure that isn't Evergrant's, which stays as it is."""
    if error.retry_state is RetryState.TIMEOUT or isinstance(error.cause, exceptions.TimeoutError):
        return TokenNotReady(connection, "timeout")
    details = error.cause.details if isinstance(error.cause, ApplicationError) else ()
    facts = cast("Mapping[str, Any]", details[0] if details and isinstance(details[0], dict) else {})
    if "code" not in facts:
        return error
    return TokenNotReady(facts.get("connection_id") or connection, facts["code"])


def connection_workflow_id(connection: str | tuple[str, str]) -> str:
    """The id of the connection's workflow, from itself or from (tenant, connection id)."""
    return connection if isinstance(connection, str) else f"connection:{connection[0]}:{connection[1]}"


async def request_token(connection: str | tuple[str, str], *, app: str, trace_id: str = "") -> str:
    """Ask for a fresh grant; the connection's workflow signals `token_ready` back to this one.

    Returns the connection's id, which the answer carries. Raises TokenNotReady with the code
    `connection_not_running` when that connection has no running workflow.
    """
    target = connection_workflow_id(connection)
    if not target.startswith("connection:"):
        why = f'{target} is no connection: give tenant and id, such as ("default", "con_…")'
        raise ApplicationError(why, type="connection_misnamed", non_retryable=True)
    context = RequestContext(by=f"app:{app}", trace_id=trace_id)
    message = RequestToken(app=app, reply_to=workflow.info().workflow_id, context=context)
    connection_id = target.rpartition(":")[2]
    try:
        await workflow.get_external_workflow_handle(target).signal(REQUEST_TOKEN, message)
    except FailureError as error:
        raise TokenNotReady(connection_id, "connection_not_running") from error
    return connection_id


class TokenInbox:
    """Mix into a workflow class: receives `token_ready`; `token_for` asks and waits."""

    @workflow.signal(name=TOKEN_READY)
    def token_ready(self, answer: TokenReady) -> None:
        count, _ = self._received(answer.connection_id)
        self._answers()[answer.connection_id] = (count + 1, answer)

    async def token_for(
        self,
        connection: str | tuple[str, str],
        *,
        app: str,
        trace_id: str = "",
        timeout: timedelta = timedelta(minutes=5),
    ) -> TokenReady:
        """Ask, and wait for the answer. Raises TokenNotReady; its code is `timeout` after `timeout`."""
        connection_id = connection_workflow_id(connection).rpartition(":")[2]
        before, _ = self._received(connection_id)
        await request_token(connection, app=app, trace_id=trace_id)
        return await self._wait(
            connection_id, lambda: self._received(connection_id)[0] > before, timeout, "token"
        )

    async def token_repaired(
        self, connection: str | tuple[str, str], *, timeout: timedelta = timedelta(days=7)
    ) -> TokenReady:
        """After a TokenNotReady with `again`: wait, for days if need be, until there is a token.

        Raises TokenNotReady when the connection ended instead; its code is `timeout` after `timeout`.
        """
        connection_id = connection_workflow_id(connection).rpartition(":")[2]

        def is_final() -> bool:
            _, answer = self._received(connection_id)
            return answer is not None and not answer.again

        return await self._wait(connection_id, is_final, timeout, "repair")

    async def _wait(
        self, connection_id: str, has_come: Callable[[], bool], timeout: timedelta, awaited: str
    ) -> TokenReady:
        try:
            await workflow.wait_condition(
                has_come, timeout=timeout, timeout_summary=f"{awaited} of {connection_id}"
            )
        except TimeoutError:
            raise TokenNotReady(connection_id, "timeout") from None
        _, answer = self._received(connection_id)
        assert answer is not None
        if answer.problem is not None:
            raise TokenNotReady(connection_id, answer.problem, again=answer.again)
        return answer

    def _received(self, connection_id: str) -> tuple[int, TokenReady | None]:
        """How many answers have come for a connection, and the newest."""
        return self._answers().get(connection_id, (0, None))

    def _answers(self) -> dict[str, tuple[int, TokenReady]]:
        # Made on first use: a workflow's own __init__ need not know of this class.
        return self.__dict__.setdefault("_evergrant_answers", {})
