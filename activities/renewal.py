"""What a new access token is made from: a refresh token, the one before it, or what we hold ourselves."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from activities.holdings import Holdings
from activities.single_use import Send
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.flow import Flow
from evergrant_server.core.grant import TokenSet
from evergrant_server.core.proof import DPOP
from evergrant_server.core.provider import RefreshRules, Rotation
from evergrant_server.core.secret import Secret
from providers.flows import Sender
from providers.minting import Minting, mint_request, read_exchanged
from providers.replies import read_tokens
from providers.reply import RawReply
from providers.spec import Refresh

NOTHING_IS_SPENT = RefreshRules(rotation=Rotation.NONE)


@dataclass(frozen=True)
class Renewal:
    """How the next token is asked for, and what an answer that was lost may have cost."""

    rules: RefreshRules
    send: Send


def by_refresh_token(sender: Sender, held: Holdings, token: Secret) -> Renewal:
    """Spend the refresh token (RFC 6749 section 6)."""
    assert held.grant is not None
    scopes = held.grant.scopes
    return Renewal(
        held.integration.refresh,
        lambda check: sender.refresh(
            held.spec,
            held.endpoints,
            held.client,
            refresh_token=token,
            scopes=scopes,
            redirect_uri=held.redirect_uri,
            params=held.params,
            flow=held.connection.flow,
            resources=held.resources,
            before_send=check,
        ),
    )


def by_access_token(sender: Sender, held: Holdings, rule: Refresh, token: Secret) -> Renewal:
    """Exchange the access token while it is good; it stays good, so nothing is spent."""
    return Renewal(
        NOTHING_IS_SPENT,
        lambda check: sender.exchange_access_token(
            held.spec,
            held.endpoints,
            held.client,
            rule,
            token=token,
            params=held.params,
            before_send=check,
        ),
    )


def by_minting(
    sender: Sender,
    clock: Clock,
    held: Holdings,
    scopes: tuple[str, ...],
    subject_token: Secret | None = None,
) -> Renewal:
    """Ask again as at first: nothing is spent, so an answer that was lost costs another request."""
    connection = held.connection
    asked = Minting(
        scopes=scopes,
        target=connection.target,
        subject=connection.subject,
        params=held.params,
        at=clock.now(),
        subject_token=subject_token,
    )
    request = mint_request(held.spec, connection.flow, held.endpoints, held.client, asked)
    return Renewal(
        NOTHING_IS_SPENT, lambda check: sender.mint(held.spec, held.client, request, before_send=check)
    )


@dataclass
class Reading:
    """Reads an answer that may bring tokens. What a staged version can't read, or takes for a
    refusal although it came with 2xx, is read as before it: the tokens in it come once."""

    held: Holdings
    read: Callable[[Holdings, RawReply], TokenSet]  # pure
    as_before: bool = False

    def tokens(self, reply: RawReply) -> TokenSet:
        """Raises as `read`."""
        try:
            return self.read(self.held, reply)
        except Failure as failure:
            said_yes = failure.code is Code.REPLY_UNREADABLE or 200 <= reply.status < 300
            if not self.held.provisional or not said_yes:
                raise
            with suppress(Failure):
                tokens = self.read(self.held.as_before(), reply)
                self.as_before = True
                return tokens
            raise


def renewed(held: Holdings, reply: RawReply, came_at: datetime) -> TokenSet:
    """The tokens of an answer to a renewal. Pure. Raises as `read_tokens`."""
    if held.connection.flow.mints:
        return minted(held, reply, held.connection.requested_scopes, came_at)
    scopes = held.grant.scopes if held.grant else ()
    try:
        return read_tokens(held.spec, reply, requested_scopes=scopes, refreshing=True, now=came_at)
    except Failure as failure:
        never_bound = held.grant is not None and held.grant.token_type != DPOP
        if failure.code is not Code.REPLY_UNREADABLE or not (held.spec.dpop and never_bound):
            raise
        # binding was wanted later, and not done: these are as good as those before, which are spent
        bearer = held.spec.model_copy(update={"dpop": False})
        return read_tokens(bearer, reply, requested_scopes=scopes, refreshing=True, now=came_at)


def minted(held: Holdings, reply: RawReply, scopes: tuple[str, ...], came_at: datetime) -> TokenSet:
    """The tokens of a minting, without a refresh token: one more secret, which nothing needs
    (RFC 6749 section 4.4.3). Pure. Raises as `read_tokens`."""
    if held.connection.flow is Flow.TOKEN_EXCHANGE:
        tokens = read_exchanged(held.spec, reply, requested_scopes=scopes, now=came_at)
    else:
        tokens = read_tokens(held.spec, reply, requested_scopes=scopes, refreshing=False, now=came_at)
    return tokens.model_copy(update={"refresh_token": None, "refresh_expires_in": None})
