"""The link of a consent to what a server, or its connection, lacks: added to the failure where it is safe.

It is where the link has no authority: under the binding `oidc` a login proves the subject first, so that a
model may pass it on. Other bindings have no link here (`request_consent`).
"""

from starlette.requests import Request

from evergrant_server.access.callers import Caller
from evergrant_server.access.judged_request import JudgedRequest
from evergrant_server.access.refusals import WantedConsent, add_link, names_of, target_of, with_turn
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
    call = JudgedRequest.of(parts.api, request, caller)
    try:
        row = await parts.api.lease_rows.load(caller.tenant, connection_id)
        if row is None or not call.allows(Action.CONNECT, target_of(row)):
            return failure
        scopes = tuple(str(failure.context.get("scopes", "")).split()) or None
        step_up = failure.code is ErrorCode.SCOPE_NOT_GRANTED
        offered = await parts.api.offer_consent(call, WantedConsent(names_of(row), scopes, step_up=step_up))
    except Failure as refusal:  # no link for this binding
        another = refusal.code is ErrorCode.MADE_BY_ANOTHER_APP
        return with_turn(failure, refusal) if another else failure
    except ValueError:  # scopes that can't be asked for
        return failure
    add_link(failure, offered)
    return failure
