"""Tells a provider that tokens are to end (RFC 7009), and says what of them has ended."""

from activities.support.provider_context import ProviderContext
from evergrant_server.core.connections.connection import RevocationOutcome
from evergrant_server.core.secret import Secret
from providers.requests.sender import Sender
from providers.responses.token_response import is_unsupported_token_type, read_revocation


async def revoke_at_provider(
    sender: Sender, held: ProviderContext, refresh_token: Secret | None, access_token: Secret
) -> RevocationOutcome:
    """Raises Failure when the provider confirms nothing (RFC 7009 section 2.2.1)."""
    rule = held.spec.revocation
    refresh, access = (refresh_token, "refresh_token"), (access_token, "access_token")
    if rule is not None:  # a way of its own: one token ends the whole grant
        first, second = (refresh, access) if rule.token == "refresh_token" else (access, refresh)
        ended = await _revoke_token(sender, held, *first) or await _revoke_token(sender, held, *second)
        return RevocationOutcome.CONFIRMED if ended else RevocationOutcome.NOT_SUPPORTED
    grant_ended = await _revoke_token(sender, held, *refresh)
    access_ended = await _revoke_token(sender, held, *access)
    if grant_ended or (access_ended and refresh_token is None):
        return RevocationOutcome.CONFIRMED
    return RevocationOutcome.ACCESS_TOKEN_ONLY if access_ended else RevocationOutcome.NOT_SUPPORTED


async def _revoke_token(sender: Sender, held: ProviderContext, token: Secret | None, hint: str) -> bool:
    """False when there is no such token, or the provider revokes none of its kind.

    200 means done, also for an unknown token; 503 means still live (RFC 7009 section 2.2).
    """
    if token is None:
        return False
    reply = await sender.revoke(held.spec, held.endpoints, held.client, token=token, hint=hint)
    if is_unsupported_token_type(held.spec, reply):
        return False
    read_revocation(held.spec, reply)
    return True
