"""What a route asks for before it does anything: the caller, and the right to do it.

A command's caller is always read anew; only the lease path uses a cache, and its ledger
checks that.
"""

from typing import Annotated

from fastapi import Depends, Header, Request
from fastapi.security import HTTPBearer

from evergrant_server.api.authentication import Caller
from evergrant_server.api.parts import Parts
from evergrant_server.api.tracing import trace_of
from evergrant_server.core.access import Action
from evergrant_server.core.connection import Connection
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.messages import Asked
from evergrant_server.policy import Reason, decide, reaches
from evergrant_server.store import Tx

_documented = HTTPBearer(auto_error=False, description="An API key: `evg_<key id>_<secret>`.")


def parts_of(request: Request) -> Parts:
    return request.app.state.parts


async def authenticated(request: Request, _: Annotated[object, Depends(_documented)]) -> Caller:
    """The app that asks. Raises Failure UNAUTHENTICATED or APP_DISABLED."""
    return await parts_of(request).authenticator.fresh(request)


async def tenant_admin(caller: Annotated[Caller, Depends(authenticated)]) -> Caller:
    """An app that may change the whole tenant's configuration. Raises Failure NOT_PERMITTED."""
    require(caller, Action.ADMIN, integration=None, subject=None, hidden=False)
    return caller


async def asked(request: Request, caller: Annotated[Caller, Depends(authenticated)]) -> Asked:
    return trace_of(request).asked_by(caller.by)


With = Annotated[Parts, Depends(parts_of)]
Asking = Annotated[Caller, Depends(authenticated)]
TenantAdmin = Annotated[Caller, Depends(tenant_admin)]
By = Annotated[Asked, Depends(asked)]
IdempotencyKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$"),
]


def require(
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
    if hidden and verdicts[0].reason is Reason.NO_PERMIT:
        raise Failure(Code.NOT_FOUND)
    raise Failure(Code.NOT_PERMITTED, f"That needs the action {' or '.join(actions)}.")


async def visible_connection(tx: Tx, caller: Caller, connection_id: str, *actions: Action) -> Connection:
    """The connection, if this app may know of it and may do one of `actions` (none: just look).

    Raises Failure NOT_FOUND, the same for what is absent, another tenant's and not permitted;
    NOT_PERMITTED when it is covered for other actions.
    """
    found = await tx.connections.get(caller.tenant, ConnectionId(connection_id))
    if found is None or not reaches(caller.permits, integration=found.integration, subject=found.subject):
        raise Failure(Code.NOT_FOUND)
    if actions:
        require(caller, *actions, integration=found.integration, subject=found.subject)
    return found
