"""The first tokens of a trial in flows without a callback: device authorization, client credentials."""

import asyncio
from collections.abc import Callable

from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.flow import Flow, TokenTarget
from evergrant_server.core.errors import ErrorCode, Failure
from providers.requests.client_grants import ClientGrantInput, client_grant_request
from providers.requests.device import (
    device_authorization_request,
    device_token_request,
    read_device_authorization,
)
from providers.responses.error_mapping import error_name
from providers.tools.trial.token_requests import SeenReply, TokenRequests

_SLOWER_S = 5.0  # RFC 8628 section 3.5


async def device_code(
    requests: TokenRequests, kind: str, clock: Clock, tell: Callable[[str], None]
) -> SeenReply:
    """Show the user code and poll (RFC 8628). Raises Failure CONSENT_EXPIRED, and as the two requests."""
    setup = requests.setup
    access = setup.access()
    reply = await requests.sender.send(access, device_authorization_request(access, setup.scopes))
    code = read_device_authorization(setup.spec, reply, clock.now())
    requests.redactor.learn(code.device_code)
    tell(f"Open {code.verification_uri} in your browser and enter {code.user_code}")
    interval_s = code.interval_s
    while clock.now() < code.expires_at:
        await asyncio.sleep(interval_s)
        call = requests.sender.send(access, device_token_request(access, code.device_code))
        seen = await requests.obtain(kind, call)
        error = error_name(setup.spec, seen.reply)
        if error not in ("authorization_pending", "slow_down"):
            return seen
        requests.seen.remove(seen)
        interval_s += _SLOWER_S if error == "slow_down" else 0
    raise Failure(ErrorCode.CONSENT_EXPIRED, "the device code has expired")


async def client_credentials(requests: TokenRequests, kind: str, clock: Clock) -> SeenReply:
    """Request a token for the client itself (RFC 6749 section 4.4). Raises Failure."""
    access = requests.setup.access()
    grant = ClientGrantInput(requests.setup.scopes, TokenTarget(), "", clock.now())
    request = client_grant_request(access, Flow.CLIENT_CREDENTIALS, grant)
    return await requests.obtain(kind, requests.sender.send(access, request))
