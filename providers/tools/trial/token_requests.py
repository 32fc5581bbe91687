"""The requests of a trial, as the worker sends them. Each reply is kept, read, and its secrets learnt.

A request that may bring tokens is never interrupted: the tokens of an unread reply would stay valid at the
provider, and could no longer be revoked.
"""

import asyncio
import re
from base64 import b64encode
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote_plus, unquote_plus

from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import Failure
from evergrant_server.core.secret import Secret
from providers.requests.request_format import (
    ProviderAccess,
    access_token_exchange_request,
    introspection_request,
    refresh_request,
    revocation_request,
)
from providers.requests.sender import Sender, SendFailed
from providers.responses.error_mapping import read_introspection, read_revocation
from providers.responses.raw_reply import RawReply
from providers.responses.sent_values import sent_values
from providers.responses.token_response import additional_token_sets, read_tokens
from providers.tools.trial.consent import TrialSetup
from providers.tools.trial.redaction import Redactor

T = TypeVar("T")
_SHORT = 16  # a shorter value that was sent may be a word
_ANY_TOKEN = re.compile(r'([A-Za-z_]*token)"?\s*[:=]\s*"?([^"&\s,}]{4,})', re.IGNORECASE)


@dataclass(frozen=True)
class SeenReply:
    """One reply of a trial: to a request of this `kind`, which sent `sent`. How it was read comes with it."""

    kind: str
    reply: RawReply
    sent: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)  # secret -> placeholder
    tokens: TokenSet | None = None
    failure: Failure | None = None
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])  # of the callback


@dataclass
class TrialGrant:
    """A grant that the trial holds, until the provider has confirmed its revocation."""

    tokens: TokenSet
    facts: dict[str, Any]
    ended: bool = False

    @property
    def renewal(self) -> Secret | None:
        """The refresh token."""
        return self.tokens.refresh_token


class TokenRequests:
    """Sends the requests of one trial. `seen` has every reply, `grants` what was obtained.

    `lost`: a reply that may have had tokens never came.
    """

    def __init__(self, setup: TrialSetup, sender: Sender, redactor: Redactor, clock: Clock) -> None:
        self.setup = setup
        self.sender = sender
        self.redactor = redactor
        self.seen: list[SeenReply] = []
        self.grants: list[TrialGrant] = []
        self.lost = False
        self._clock = clock
        self.learn_client(setup.client_secret)

    def learn_client(self, secret: Secret | None) -> None:
        """Remember a client secret, also as HTTP Basic writes it (RFC 7617)."""
        if secret is None:
            return
        pair = f"{quote_plus(self.setup.integration.client_id)}:{quote_plus(secret.reveal())}"
        templated = (self.setup.spec.basic_auth_template or "").replace("{client_secret}", secret.reveal())
        self.redactor.learn(
            secret, *(b64encode(text.encode()).decode() for text in (pair, templated) if text)
        )

    async def obtain(
        self,
        kind: str,
        call: Coroutine[Any, Any, RawReply],
        *,
        facts: Mapping[str, Any] | None = None,
        sent: Mapping[str, str] | None = None,
        grant: TrialGrant | None = None,
        refreshing: bool = False,
    ) -> SeenReply:
        """Send, and read the tokens of the reply, which become the grant's, or a grant of their own.

        Raises as `Sender`; how a reply was read is in `failure`.
        """
        return await uninterrupted(
            self._obtain(kind, call, dict(facts or {}), dict(sent or {}), grant, refreshing)
        )

    async def _obtain(
        self,
        kind: str,
        call: Coroutine[Any, Any, RawReply],
        facts: dict[str, Any],
        sent: dict[str, str],
        grant: TrialGrant | None,
        refreshing: bool,
    ) -> SeenReply:
        try:
            reply = await call
        except SendFailed as failure:
            self.lost = self.lost or failure.sent
            raise
        loose = _tokens_in(reply)
        self.redactor.learn(*loose.values())
        if reply.request is not None:  # such as a client assertion
            self.redactor.learn(*(value for value in sent_values(reply.request) if len(value) > _SHORT))
        try:
            tokens = self._read(reply, refreshing=refreshing)
        except Failure as failure:
            seen = SeenReply(kind, reply, sent, failure=failure, facts=facts)
            if "access_token" in loose or "refresh_token" in loose:  # a reply that can't be read has tokens
                access = Secret(loose.get("access_token", loose.get("refresh_token", "")))
                renewal = Secret(loose["refresh_token"]) if "refresh_token" in loose else None
                self.grants.append(TrialGrant(TokenSet(access_token=access, refresh_token=renewal), facts))
        else:
            seen = SeenReply(kind, reply, sent, tokens=tokens, facts=facts)
            self._hold(tokens, facts, grant)
        self.seen.append(seen)
        return seen

    def _read(self, reply: RawReply, *, refreshing: bool) -> TokenSet:
        spec, now = self.setup.spec, self._clock.now()
        scopes = self.setup.scopes
        tokens = read_tokens(spec, reply, requested_scopes=scopes, refreshing=refreshing, now=now)
        if not refreshing:
            tokens = tokens.__replace__(further=additional_token_sets(spec, reply, now=now))
        for each in (tokens, *tokens.further.values()):
            self.redactor.learn(each.access_token, each.refresh_token)
            self.redactor.learn_id_token(each.id_token)
            self.redactor.learn_personal(each.metadata)
        return tokens

    def _hold(self, tokens: TokenSet, facts: dict[str, Any], grant: TrialGrant | None) -> None:
        if grant is None:
            self.grants.append(TrialGrant(tokens, facts | tokens.metadata))
            self.grants += [TrialGrant(each, dict(facts)) for each in tokens.further.values()]
            return
        kept = tokens.refresh_token or grant.tokens.refresh_token  # RFC 6749 section 6
        grant.ended = False
        grant.tokens = tokens.__replace__(refresh_token=kept)

    async def refresh(
        self,
        kind: str,
        grant: TrialGrant,
        token: Secret,
        access: ProviderAccess | None = None,
        *,
        dead: bool = False,
    ) -> SeenReply:
        """Spend a refresh token, or the access token that is exchanged for the next one. As `obtain`.

        Tokens that come for a `dead` one are a grant of their own: the old ones may be valid as well.
        """
        spec, setup = self.setup.spec, self.setup
        access = access or setup.access(grant.facts)
        self.redactor.learn(token)
        if spec.refreshes_with_access_token:
            request, name = access_token_exchange_request(access, spec.refresh, token), "<access token>"
        else:
            redirect = setup.redirect_uri if setup.flow is Flow.AUTHORIZATION_CODE else None
            request = refresh_request(access, token, redirect_uri=redirect, flow=setup.flow)
            name = "<refresh token>"
        call = self.sender.send(access, request)
        sent, holder = {token.reveal(): name}, None if dead else grant
        return await self.obtain(kind, call, facts=grant.facts, sent=sent, grant=holder, refreshing=True)

    async def revoke(self, kind: str, grant: TrialGrant, token: Secret, hint: str) -> SeenReply:
        """Revoke one token of a grant. Raises as `Sender` and `revocation_request`."""
        access = self.setup.access(grant.facts)
        request = revocation_request(access, token, hint)
        reply = await uninterrupted(self.sender.send(access, request))
        failure = None
        try:
            read_revocation(self.setup.spec, reply)
        except Failure as refused:
            failure = refused
        sent = {token.reveal(): f"<{hint.replace('_', ' ')}>"}
        seen = SeenReply(kind, reply, sent, failure=failure, facts=grant.facts)
        self.seen.append(seen)
        return seen

    async def is_active(self, grant: TrialGrant) -> bool:
        """Whether the access token is active, by introspection. Raises Failure."""
        access = self.setup.access(grant.facts)
        request = introspection_request(access, grant.tokens.access_token, "access_token")
        return read_introspection(self.setup.spec, await self.sender.send(access, request))


async def uninterrupted(call: Coroutine[Any, Any, T]) -> T:
    """The result of a call that goes on to its end when it is cancelled; the cancellation comes after."""
    task = asyncio.ensure_future(call)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def altered(secret: Secret) -> Secret:
    """A value of the same length and alphabet that differs in three characters of its middle."""
    letters = list(secret.reveal())
    middle = len(letters) // 2
    places = sorted(
        (at for at in range(len(letters)) if letters[at].isalnum()), key=lambda at: abs(at - middle)
    )
    for at in places[:3]:
        old = letters[at]
        first, last = ("0", "9") if old.isdigit() else ("a", "f") if old.islower() else ("A", "F")
        letters[at] = chr(ord(old) + 1) if first <= old < last else first if old != first else last
    return Secret("".join(letters))


def _tokens_in(reply: RawReply) -> dict[str, str]:
    """The values of fields that are called a token, also in a body that can't be parsed."""
    text = reply.body.decode("utf-8", "replace")
    return {
        name.lower(): unquote_plus(value) if "%" in value else value
        for name, value in _ANY_TOKEN.findall(text)
    }
