"""Introspection of one grant (RFC 7662): asks the provider whether its tokens are active. Spends nothing."""

from datetime import datetime

from activities.support.provider_context import ProviderContext
from evergrant_server.core.provider_events import IntrospectionFinding, judge_introspection
from evergrant_server.core.secret import Secret
from evergrant_server.store import Store
from providers.requests.request_format import introspection_request
from providers.requests.sender import Sender
from providers.responses.error_mapping import read_introspection


def supports_introspection(context: ProviderContext) -> bool:
    """True when the provider can introspect this connection's tokens (RFC 7662)."""
    return context.connection.flow.is_bearer and context.endpoints.introspection_endpoint is not None


async def introspect_grant(
    store: Store, sender: Sender, context: ProviderContext, now: datetime
) -> IntrospectionFinding:
    """Introspect the refresh token, and the access token where that gives no answer. Raises Failure."""
    grant, flow = context.grant, context.connection.flow
    async with store.read() as tx:
        refresh = await tx.grants.refresh_token(context.connection)
        access = await tx.grants.access_token(context.connection)
        answers = await tx.introspections.provider_recognizes_tokens(
            context.integration.tenant, context.integration.id
        )
    if flow.is_client_grant:
        refresh = None  # it is a subject token to exchange, often another issuer's
    refresh_active = None if refresh is None else await _is_active(sender, context, refresh, "refresh_token")
    access_active = None
    if not refresh_active and not (refresh_active is False and answers):
        # a static credential is not a token that the provider issued
        valid = grant is not None and grant.is_valid(now) and not flow.is_static
        access_active = await _is_active(sender, context, access, "access_token") if valid else None
    return judge_introspection(refresh_active, access_active, refresh_answers=answers)


async def _is_active(sender: Sender, context: ProviderContext, token: Secret, hint: str) -> bool:
    """The member `active` of the response. Raises Failure for anything but a clear answer."""
    reply = await sender.send(context, introspection_request(context, token, hint))
    return read_introspection(context.spec, reply)
