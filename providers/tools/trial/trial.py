"""The steps of a trial, in their order. However it ends, the grants that it obtained are revoked."""

from collections.abc import Callable
from dataclasses import dataclass

from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.id_token import require_nonce
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from providers.requests.request_format import access_token_exchange_request, code_exchange_request
from providers.tools.trial.clean_up import end_grants, token_to_revoke
from providers.tools.trial.consent import CallbackReceiver, walk_consent
from providers.tools.trial.first_grants import client_credentials, device_code
from providers.tools.trial.observation import (
    Observation,
    observe_reach,
    observe_refusal,
    observe_reuse,
    observe_revocation,
    observe_tokens,
)
from providers.tools.trial.token_requests import SeenReply, TokenRequests, TrialGrant, altered, uninterrupted
from providers.tools.trial.vector_replies import written_reply


@dataclass(frozen=True)
class TrialOptions:
    """What is tried beyond the usual steps."""

    wrong_secret: bool = False  # a wrong client secret
    reuse: bool = False  # a refresh token that was used already
    second_grant: bool = False  # a second consent, which tells what else a revocation ends


class Trial:
    """One trial. `tell` gets a line for the user, `note` every observation."""

    def __init__(
        self,
        requests: TokenRequests,
        receiver: CallbackReceiver,
        options: TrialOptions,
        clock: Clock,
        tell: Callable[[str], None],
        note: Callable[[Observation], None],
    ) -> None:
        self._requests = requests
        self._setup = requests.setup
        self._receiver = receiver
        self._options = options
        self._clock = clock
        self._tell = tell
        self._note = note

    async def run(self) -> None:
        """Go through all steps. Raises Failure; what was seen until then is in `TokenRequests.seen`."""
        try:
            grant = await self._grant("exchange")
            if await self._refresh(grant):
                await self._refusals(grant)
                if self._options.reuse:
                    await self._reuse(grant)
            second = None
            if self._options.second_grant and self._setup.flow.uses_browser:
                self._tell("The second consent, with the same account:")
                second = await self._grant("second exchange")
            await self._revocation(grant, second)
        finally:
            await uninterrupted(end_grants(self._requests, self._tell))

    async def _grant(self, kind: str) -> TrialGrant:
        requests, setup = self._requests, self._setup
        match setup.flow:
            case Flow.AUTHORIZATION_CODE:
                seen = await self._exchange_code(kind)
            case Flow.DEVICE_CODE:
                seen = await device_code(requests, kind, self._clock, self._tell)
            case _:
                seen = await client_credentials(requests, kind, self._clock)
        grant = self._granted(kind, seen)
        rule = setup.spec.post_token_exchange
        if rule is None or not setup.flow.may_refresh:
            return grant
        access, token = setup.access(grant.facts), grant.tokens.access_token
        call = requests.sender.send(access, access_token_exchange_request(access, rule, token))
        sent = {token.reveal(): "<access token>"}
        self._granted("post_exchange", await requests.obtain("post_exchange", call, sent=sent, grant=grant))
        return grant

    async def _exchange_code(self, kind: str) -> SeenReply:
        requests, setup = self._requests, self._setup
        consent = await walk_consent(
            setup, requests.sender, self._receiver, self._clock, requests.redactor.learn
        )
        requests.redactor.learn_personal(consent.facts)
        self._note(Observation("consent", ["a code came back"]))
        access = setup.access(consent.facts)
        request = code_exchange_request(
            access, code=consent.code, verifier=consent.verifier, redirect_uri=setup.redirect_uri
        )
        call = requests.sender.send(access, request)
        seen = await requests.obtain(kind, call, facts=consent.facts)
        if seen.tokens is not None:
            require_nonce(seen.tokens.id_token, consent.nonce_hash)
        return seen

    def _granted(self, step: str, seen: SeenReply) -> TrialGrant:
        """The grant of a reply, which is noted. Raises the Failure as which it was read."""
        if seen.failure is not None or seen.tokens is None:
            self._note_failure(step, seen)
            raise seen.failure or Failure(ErrorCode.INTERNAL, "a reply was not read")
        spec, scopes = self._setup.spec, self._setup.scopes
        # the redactor learns whom the reply names before the next reply is shown
        written_reply(spec, self._requests.redactor, seen)
        self._note(observe_tokens(step, spec, seen.reply, seen.tokens, scopes))
        return next(grant for grant in self._requests.grants if not grant.ended and _holds(grant, seen))

    def _note_failure(self, step: str, seen: SeenReply) -> None:
        assert seen.failure is not None
        saw = [f"status {seen.reply.status}", f"read as {seen.failure.code}: {seen.failure.detail}"]
        self._note(Observation(step, saw, differs=["tokens were expected"]))

    async def _refresh(self, grant: TrialGrant) -> bool:
        """False where the provider has no refresh, or gave nothing to refresh with."""
        spec, before = self._setup.spec, grant.tokens
        token = before.access_token if spec.refreshes_with_access_token else before.refresh_token
        if not spec.refresh_supported or token is None or not self._setup.flow.may_refresh:
            return False
        if spec.min_refresh_age_s is not None:
            self._note(
                Observation("refresh", ["not tried"], [f"min_refresh_age_s: {spec.min_refresh_age_s:g}"])
            )
            return False
        seen = await self._requests.refresh("refresh", grant, token)
        if seen.tokens is None:
            self._note_failure("refresh", seen)
            return False
        self._note(observe_tokens("refresh", spec, seen.reply, seen.tokens, self._setup.scopes, before))
        return True

    async def _refusals(self, grant: TrialGrant) -> None:
        await self._refused("dead refresh token (altered)", "altered", grant, altered(self._renewal(grant)))
        secret = self._setup.client_secret
        if not self._options.wrong_secret:
            return
        if secret is None:
            self._note(Observation("wrong client secret", ["not tried: the client has no secret"]))
            return
        wrong = altered(secret)
        self._requests.learn_client(wrong)
        access = self._setup.access(grant.facts, secret=wrong)
        seen = await self._requests.refresh("wrong secret", grant, self._renewal(grant), access)
        expected = ErrorCode.CLIENT_REJECTED
        self._note(
            observe_refusal("wrong client secret", self._setup.spec, seen.reply, seen.failure, expected)
        )

    async def _refused(self, step: str, kind: str, grant: TrialGrant, token: Secret) -> bool:
        """Whether a refresh was refused, as it should be."""
        seen = await self._requests.refresh(kind, grant, token, dead=True)
        expected = ErrorCode.GRANT_REJECTED
        self._note(observe_refusal(step, self._setup.spec, seen.reply, seen.failure, expected))
        return seen.failure is not None

    async def _reuse(self, grant: TrialGrant) -> None:
        used = self._renewal(grant)
        await self._requests.refresh("refresh again", grant, used)
        if self._renewal(grant) == used:
            self._note(Observation("second use", ["not tried: the refresh token doesn't change"]))
            return
        current = self._renewal(grant)
        seen = await self._requests.refresh("reused", grant, used, dead=True)
        after = await self._requests.refresh("after reuse", grant, current)
        accepted, lives = seen.failure is None, after.failure is None
        self._note(observe_reuse(self._setup.spec, accepted=accepted, current_lives=lives))

    async def _revocation(self, grant: TrialGrant, second: TrialGrant | None) -> None:
        spec = self._setup.spec
        if self._setup.access(grant.facts).endpoints.revocation_endpoint is None:
            self._note(Observation("revocation", ["not tried"], ["no revocation endpoint"]))
            return
        token, hint = token_to_revoke(self._setup.spec, grant)
        seen = await self._requests.revoke("revoke", grant, token, hint)
        self._note(observe_revocation(spec, seen.reply, seen.failure))
        if seen.failure is not None:
            return
        grant.ended = True
        if grant.renewal is not None and not spec.refreshes_with_access_token:
            step = "dead refresh token (revoked)"
            await self._refused(step, "revoked", grant, grant.renewal)
        await self._access_token_after_revocation(grant)
        if second is not None:
            reached = await self._requests.refresh("other grant", second, self._renewal(second))
            self._note(observe_reach(spec, other_grant_lives=reached.failure is None))

    async def _access_token_after_revocation(self, grant: TrialGrant) -> None:
        if self._setup.access(grant.facts).endpoints.introspection_endpoint is None:
            return
        try:
            active = await self._requests.is_active(grant)
        except Failure as failure:
            self._note(Observation("introspection", [f"read as {failure.code}: {failure.detail}"]))
            return
        words = "still active" if active else "no longer active"
        self._note(Observation("introspection", [f"after the revocation the access token is {words}"]))

    def _renewal(self, grant: TrialGrant) -> Secret:
        """What a refresh spends. Raises Failure where there is nothing."""
        exchanged = self._setup.spec.refreshes_with_access_token
        token = grant.tokens.access_token if exchanged else grant.renewal
        if token is None:
            raise Failure(ErrorCode.REPLY_UNREADABLE, "the provider gave no refresh token")
        return token


def _holds(grant: TrialGrant, seen: SeenReply) -> bool:
    return seen.tokens is not None and grant.tokens.access_token == seen.tokens.access_token
