"""Metadata documents of clients at the token endpoint: a stale one is read again before it counts (ADR 0070).

A worker reads it, since the API sends no requests (ADR 0008). Where it can't be read, what it said before
counts for DOCUMENT_GRACE more, so that a passing failure of the client's site ends no session.
"""

import asyncio

from evergrant_server.api.oauth.client_authentication import ClientTokenRequest, invalid_client
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.base import CLAIMED
from evergrant_server.core.messages.integrations import ReadClientDocument
from evergrant_server.core.oauth.clients import GatewayClient
from evergrant_server.telemetry.request_ids import trace_of

READ_TIMEOUT_S = 5.0  # the client waits, and has a limit of its own


async def read_again(request: ClientTokenRequest, client: GatewayClient) -> None:
    """Have a worker read the document, and wait for it, for a while. What came of it is the client's row."""
    context = trace_of(request.http).request_context(f"{CLAIMED}client:{client.client_id}")
    tenant = Tenant(request.api.settings.tenant)
    order = ReadClientDocument(tenant=tenant, client_id=client.client_id, context=context)
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            await request.api.link.read_client_document(order, timeout=READ_TIMEOUT_S)
    except TimeoutError:
        return
    except Failure as failure:
        if failure.code is not ErrorCode.TEMPORAL_UNAVAILABLE:
            raise


def require_counting(request: ClientTokenRequest, client: GatewayClient) -> None:
    """Raise TokenRefused for a client whose document can't be used, or couldn't be read for too long."""
    if client.fresh_until is None:
        raise invalid_client("The client's metadata document can't be used any more: see what it says now.")
    if not client.outlasts_failure(request.now):
        why = "The client's metadata document couldn't be read for a day: refresh again once it can."
        raise invalid_client(why)
