"""Tells a provider that tokens are to end (RFC 7009), and says what of them has ended."""

from activities.holdings import Holdings
from evergrant_server.core.connection import Revocation
from evergrant_server.core.secret import Secret
from providers.flows import Sender
from providers.replies import read_revocation, revokes_no_such_token


async def ended_at_provider(
    sender: Sender, held: Holdings, refresh_token: Secret | None, access_token: Secret
) -> Revocation:
    """Raises Failure when the provider confirms nothing (RFC 7009 section 2.2.1)."""
    rule = held.spec.revocation
    refresh, access = (refresh_token, "refresh_token"), (access_token, "access_token")
    if rule is not None:  # a way of its own: one token ends the whole grant
        first, second = (refresh, access) if rule.token == "refresh_token" else (access, refresh)
        ended = await _revoked(sender, held, *first) or await _revoked(sender, held, *second)
        return Revocation.CONFIRMED if ended else Revocation.NOT_SUPPORTED
    grant_ended = await _revoked(sender, held, *refresh)
    access_ended = await _revoked(sender, held, *access)
    if grant_ended or (access_ended and refresh_token is None):
        return Revocation.CONFIRMED
    return Revocation.ACCESS_TOKEN_ONLY if access_ended else Revocation.NOT_SUPPORTED


async def _revoked(sender: Sender, held: Holdings, token: Secret | None, hint: str) -> bool:
    """False when there is no such token, or the provider revokes none of its kind.

    200 means done, also for an unknown token; 503 means still live (RFC 7009 section 2.2).
    """
    if token is None:
        return False
    reply = await sender.revoke(held.spec, held.endpoints, held.client, token=token, hint=hint)
    if revokes_no_such_token(held.spec, reply):
        return False
    read_revocation(held.spec, reply)
    return True
