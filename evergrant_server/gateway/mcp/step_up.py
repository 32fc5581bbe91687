"""The link of a consent to what a server, or its connection, lacks: added to the failure where it is safe.

It is where the link has no authority: under the binding `oidc` a login proves the subject first, so that a
model may pass it on. Other bindings have no link here (`request_consent`).
"""

from starlette.requests import Request

from evergrant_server.api.connections.create import ConnectionSetup
from evergrant_server.api.connections.models import ConnectionBody
from evergrant_server.api.http.call import ApiCall
from evergrant_server.api.http.callers.caller import Caller
from evergrant_server.api.http.tracing import trace_of
from evergrant_server.api.leases.refusals import target_of, with_turn
from evergrant_server.core.access import Action
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.gateway.parts import GatewayParts

_HELPED = (ErrorCode.SCOPE_NOT_GRANTED, ErrorCode.CONSENT_REQUIRED)


async def with_link(
    parts: GatewayParts, request: Request, caller: Caller, connection_id: ConnectionId, failure: Failure
) -> Failure:
    """The failure, with `connect_url` if a consent helps and the app may ask for it."""
    if failure.code not in _HELPED:
        return failure
    call = ApiCall(parts.api, caller, trace_of(request).request_context(caller.by), request)
    try:
        row = await parts.api.lease_rows.load(caller.tenant, connection_id)
        if row is None or not call.allows(Action.CONNECT, target_of(row)):
            return failure
        scopes = str(failure.context.get("scopes", "")).split()
        wanted = ConnectionBody(
            integration=row.integration, subject=row.subject, label=row.label, scopes=tuple(scopes) or None
        )
        step_up = failure.code is ErrorCode.SCOPE_NOT_GRANTED
        setup = ConnectionSetup(call, for_lease=True, step_up=step_up)
        opened = await call.write(lambda tx: setup.find_or_create(tx, wanted))
    except Failure as refusal:  # no link for this binding
        another = refusal.code is ErrorCode.MADE_BY_ANOTHER_APP
        return with_turn(failure, refusal) if another else failure
    except ValueError:  # scopes that can't be asked for
        return failure
    if opened.connect_url is not None and opened.consent is not None:
        failure.context["connect_url"] = opened.connect_url
        failure.context["expires_at"] = opened.consent.expires_at.isoformat()
    return failure
