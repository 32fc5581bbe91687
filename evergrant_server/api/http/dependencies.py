"""What a route asks for before it does anything: the caller, and the right to do it.

A command's caller is always read anew; only the lease path uses a cache, and its ledger
checks that.
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
    return request.app.state.parts


async def authenticated_caller(request: Request, _: Annotated[object, Depends(_bearer_scheme)]) -> Caller:
    """The app that asks. Raises Failure UNAUTHENTICATED or APP_DISABLED."""
    return await api_context(request).authenticator.authenticate(request)


async def tenant_admin(caller: Annotated[Caller, Depends(authenticated_caller)]) -> Caller:
    """An app that may change the whole tenant's configuration. Raises Failure NOT_PERMITTED."""
    require_permit(caller, Action.ADMIN, integration=None, subject=None, hidden=False)
    return caller


async def request_context(
    request: Request, caller: Annotated[Caller, Depends(authenticated_caller)]
) -> RequestContext:
    return trace_of(request).request_context(caller.by)


ContextDep = Annotated[ApiContext, Depends(api_context)]
CallerDep = Annotated[Caller, Depends(authenticated_caller)]
TenantAdminDep = Annotated[Caller, Depends(tenant_admin)]
RequestContextDep = Annotated[RequestContext, Depends(request_context)]
IdempotencyKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$"),
]


def require_permit(
    caller: Caller, *actions: Action, integration: str | None, subject: str | None, hidden: bool = True
) -> None:
    """Pass when a permit allows one of `actions`.

    Raises Failure NOT_FOUND when no permit covers it (`hidden`), so that it looks the same
    as what doesn't exist; NOT_PERMITTED when one covers it for other actions.
    """
    verdicts = [
        decide(caller.permits, integration=integration, subject=subject, action=action) for action in actions
    ]
    if any(verdict.allowed for verdict in verdicts):
        return
    if hidden and verdicts[0].reason is DecisionReason.NO_PERMIT:
        raise Failure(ErrorCode.NOT_FOUND)
    raise Failure(ErrorCode.NOT_PERMITTED, f"That needs the action {' or '.join(actions)}.")


async def visible_connection(
    tx: Transaction, caller: Caller, connection_id: str, *actions: Action
) -> Connection:
    """The connection, if this app may know of it and may do one of `actions` (none: just look).

    Raises Failure NOT_FOUND, the same for what is absent, another tenant's and not permitted;
    NOT_PERMITTED when it is covered for other actions.
    """
    found = await tx.connections.get(caller.tenant, ConnectionId(connection_id))
    if found is None or not may_see(caller.permits, integration=found.integration, subject=found.subject):
        raise Failure(ErrorCode.NOT_FOUND)
    if actions:
        require_permit(caller, *actions, integration=found.integration, subject=found.subject)
    return found
