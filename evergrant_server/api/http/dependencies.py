"""FastAPI dependencies of the routes: the context, the caller and its permits.

Every caller is read from the store. Only the lease path uses a cache, and the lease ledger
re-checks the revisions.
"""

from typing import Annotated

from fastapi import Depends, Header, Request
from fastapi.security import HTTPBearer

from evergrant_server.api.http.authentication import Caller
from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.tracing import trace_of
from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.policy import DecisionReason, decide, may_see
from evergrant_server.store import Transaction

_bearer_scheme = HTTPBearer(auto_error=False, description="An API key: `evg_<key id>_<secret>`.")


def api_context(request: Request) -> ApiContext:
    return request.app.state.api


async def authenticated_caller(request: Request, _: Annotated[object, Depends(_bearer_scheme)]) -> Caller:
    """The calling app. Raises Failure UNAUTHENTICATED or APP_DISABLED."""
    return await api_context(request).authenticator.authenticate(request)


async def tenant_admin(caller: Annotated[Caller, Depends(authenticated_caller)]) -> Caller:
    """A caller with `admin` for the whole tenant. Raises Failure NOT_PERMITTED."""
    require_permit(caller, Action.ADMIN, integration=None, subject=None, hidden=False)
    return caller


async def request_context(
    request: Request, caller: Annotated[Caller, Depends(authenticated_caller)]
) -> RequestContext:
    return trace_of(request).request_context(caller.by)


ApiDep = Annotated[ApiContext, Depends(api_context)]
CallerDep = Annotated[Caller, Depends(authenticated_caller)]
TenantAdminDep = Annotated[Caller, Depends(tenant_admin)]
ContextDep = Annotated[RequestContext, Depends(request_context)]
IdempotencyKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$"),
]


def require_permit(
    caller: Caller, *actions: Action, integration: str | None, subject: str | None, hidden: bool = True
) -> None:
    """Check that a permit allows one of `actions`.

    Raises Failure NOT_FOUND when no permit covers the resource (`hidden`), as for one that
    doesn't exist; NOT_PERMITTED when a permit covers it for other actions.
    """
    verdicts = [
        decide(caller.permits, integration=integration, subject=subject, action=action) for action in actions
    ]
    if any(verdict.allowed for verdict in verdicts):
        return
    if hidden and verdicts[0].reason is DecisionReason.NO_PERMIT:
        raise Failure(ErrorCode.NOT_FOUND)
    raise Failure(ErrorCode.NOT_PERMITTED, f"This needs the action {' or '.join(actions)}.")


async def visible_connection(
    tx: Transaction, caller: Caller, connection_id: str, *actions: Action
) -> Connection:
    """The connection, if a permit covers it and allows one of `actions` (none given: any action).

    Raises Failure NOT_FOUND alike for an absent, another tenant's and an uncovered connection;
    NOT_PERMITTED when a permit covers it for other actions.
    """
    found = await tx.connections.get(caller.tenant, ConnectionId(connection_id))
    if found is None or not may_see(caller.permits, integration=found.integration, subject=found.subject):
        raise Failure(ErrorCode.NOT_FOUND)
    if actions:
        require_permit(caller, *actions, integration=found.integration, subject=found.subject)
    return found
