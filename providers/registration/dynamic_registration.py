"""Sends a dynamic client registration (RFC 7591 section 3). `client_metadata` reads the reply."""

import json
from typing import Any

import httpx2

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from evergrant_server.egress import BeforeSend, Egress, SendObserver
from providers.requests.client import STANDARD_HEADERS
from providers.requests.send_failure import SendFailed
from providers.responses.raw_reply import RawReply


async def send_registration(
    egress: Egress,
    endpoint: str,
    metadata: dict[str, Any],
    initial_token: Secret | None,
    *,
    before_send: BeforeSend | None = None,
) -> RawReply:
    """POST the metadata (RFC 7591 section 3.1). Raises SendFailed."""
    headers = {**STANDARD_HEADERS, "Content-Type": "application/json"}
    if initial_token is not None:
        headers["Authorization"] = f"Bearer {initial_token.reveal()}"
    watch = SendObserver(before_send)
    try:
        async with egress.client(watch, headers=headers) as http:
            response = await http.post(endpoint, content=json.dumps(metadata).encode())
    except Failure as failure:
        raise SendFailed(failure, sent=watch.sent) from None
    except httpx2.TransportError as error:
        why = f"the registration endpoint could not be reached ({type(error).__name__})"
        raise SendFailed(Failure(ErrorCode.PROVIDER_UNREACHABLE, why), sent=watch.sent) from None
    return RawReply.of(response)
