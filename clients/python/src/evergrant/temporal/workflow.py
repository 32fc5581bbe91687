"""For workflow code: ask a connection's workflow for a fresh grant, and hear that it is ready.

Imports the standard library and temporalio only, so it runs inside the sandbox. What comes
back are facts; the token itself is leased in the activity that uses it.

    @workflow.defn
    class SyncContacts(TokenInbox):
        @workflow.run
        async def run(self, connection: str) -> int:
            await self.token_for(connection, app="pipeline")
            return await workflow.execute_activity(fetch, ...)
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from temporalio import workflow
from temporalio.exceptions import ApplicationError, FailureError

TOKEN_READY = "token_ready"
REQUEST_TOKEN = "request_token"


@dataclass(frozen=True)
class RequestContext:
    """Who asked, and in which trace (W3C trace id, "" when there is none)."""

    by: str
    trace_id: str = ""


@dataclass(frozen=True)
class RequestToken:
    """What the connection's workflow is sent; it answers the workflow `reply_to`."""

    app: str
    reply_to: str
    asked: RequestContext


@dataclass(frozen=True)
class TokenReady:
    """What it answers. `problem` is a failure code when there is no usable grant.

    `again`: somebody has to act, and another answer comes when there is a token.
    """

    connection_id: str
    generation: int
    expires_at: datetime | None = None
    problem: str | None = None
    again: bool = False


class TokenNotReady(ApplicationError):
    """There is no fresh grant; fails the workflow unless it is caught. `code` says why.

    `again`: it can be waited for, with `TokenInbox.token_repaired`.
    """

    def __init__(self, connection_id: str, code: str, *, again: bool = False) -> None:
        super().__init__(f"{connection_id} has no fresh grant: {code}", code, type=code, non_retryable=True)
        self.connection_id = connection_id
        self.code = code
        self.again = again


def connection_workflow_id(connection: str | tuple[str, str]) -> str:
    """The id of the connection's workflow, from itself or from (tenant, connection id)."""
    return connection if isinstance(connection, str) else f"connection:{connection[0]}:{connection[1]}"


async def request_token(connection: str | tuple[str, str], *, app: str, trace_id: str = "") -> str:
    """Ask for a fresh grant; `token_ready` is signalled back to this workflow.

    Returns the connection's id, which the answer carries. Raises TokenNotReady with the code
    `connection_not_running` when that connection has no workflow: it ended, or never was.
    """
    target = connection_workflow_id(connection)
    asked = RequestContext(by=f"app:{app}", trace_id=trace_id)
    message = RequestToken(app=app, reply_to=workflow.info().workflow_id, asked=asked)
    connection_id = target.rpartition(":")[2]
    try:
        await workflow.get_external_workflow_handle(target).signal(REQUEST_TOKEN, message)
    except FailureError as error:
        raise TokenNotReady(connection_id, "connection_not_running") from error
    return connection_id


class TokenInbox:
    """Mix into a workflow class: receives `token_ready`, and `token_for` asks and waits."""

    @workflow.signal(name=TOKEN_READY)
    def token_ready(self, news: TokenReady) -> None:
        received, _ = self._received(news.connection_id)
        self._letters()[news.connection_id] = (received + 1, news)

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
        try:
            await workflow.wait_condition(
                lambda: self._received(connection_id)[0] > before,
                timeout=timeout,
                timeout_summary=f"token of {connection_id}",
            )
        except TimeoutError:
            raise TokenNotReady(connection_id, "timeout") from None
        return self._good(connection_id)

    async def token_repaired(
        self, connection: str | tuple[str, str], *, timeout: timedelta = timedelta(days=7)
    ) -> TokenReady:
        """After a TokenNotReady with `again`: wait, for days if need be, until somebody has acted.

        Raises TokenNotReady when the connection ended instead; its code is `timeout` after `timeout`.
        """
        connection_id = connection_workflow_id(connection).rpartition(":")[2]

        def decided() -> bool:
            _, news = self._received(connection_id)
            return news is not None and not news.again

        try:
            await workflow.wait_condition(
                decided, timeout=timeout, timeout_summary=f"repair of {connection_id}"
            )
        except TimeoutError:
            raise TokenNotReady(connection_id, "timeout") from None
        return self._good(connection_id)

    def _good(self, connection_id: str) -> TokenReady:
        _, news = self._received(connection_id)
        assert news is not None
        if news.problem is not None:
            raise TokenNotReady(connection_id, news.problem, again=news.again)
        return news

    def _received(self, connection_id: str) -> tuple[int, TokenReady | None]:
        return self._letters().get(connection_id, (0, None))

    def _letters(self) -> dict[str, tuple[int, TokenReady]]:
        # Made on first use: a workflow's own __init__ need not know of this class.
        return self.__dict__.setdefault("_evergrant_letters", {})
