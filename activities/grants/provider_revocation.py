"""Revokes tokens at their provider (RFC 7009)."""

from activities.support.provider_context import ProviderContext
from evergrant_server.core.connections.connection import RevocationOutcome
from evergrant_server.core.secret import Secret
from providers.requests.sender import Sender
from providers.responses.error_mapping import is_unsupported_token_type, read_revocation


async def revoke_at_provider(
    sender: Sender, context: ProviderContext, refresh_token: Secret | None, access_token: Secret
) -> RevocationOutcome:
    """What the provider has confirmed. Raises Failure when that is nothing (RFC 7009 section 2.2.1)."""
    rule = context.spec.revocation
    refresh, access = (refresh_token, "refresh_token"), (access_token, "access_token")
    if rule is not None:  # not by RFC 7009: one token revokes the whole grant
        first, second = (refresh, access) if rule.token == "refresh_token" else (access, refresh)
        ended = await _revoke_token(sender, context, *first) or await _revoke_token(sender, context, *second)
        return RevocationOutcome.CONFIRMED if ended else RevocationOutcome.NOT_SUPPORTED
    grant_ended = await _revoke_token(sender, context, *refresh)
    access_ended = await _revoke_token(sender, context, *access)
    if grant_ended or (access_ended and refresh_token is None):
        return RevocationOutcome.CONFIRMED
    return RevocationOutcome.ACCESS_TOKEN_ONLY if access_ended else RevocationOutcome.NOT_SUPPORTED


async def _revoke_token(sender: Sender, context: ProviderContext, token: Secret | None, hint: str) -> bool:
    """False without a token, or when the provider revokes none of its type.

    200 means revoked, also for an unknown token; 503 means still valid (RFC 7009 section 2.2).
    """
    if token is None:
        return False
    reply = await sender.revoke(context.spec, context.endpoints, context.client, token=token, hint=hint)
    if is_unsupported_token_type(context.spec, reply):
        return False
    read_revocation(context.spec, reply)
    return True
