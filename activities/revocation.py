"""Revocation: the store first, then the provider, then `revoked` (RFC 7009)."""

from temporalio import activity

from activities.client_secrets import client_refused, with_other
from activities.failures import revocation_news
from activities.heartbeat import heartbeats
from activities.holdings import Holdings
from activities.provider_activities import ProviderActivities
from activities.records import connection_of, record, settled
from activities.single_use import open_attempt
from evergrant_server import telemetry_metrics as metrics
from evergrant_server.core.attempt import Outcome
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connection import Revocation, State
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.grant import TokenSet
from evergrant_server.core.messages import ActivityName, AskRevocation, RevocationNews, RevokeGrant
from evergrant_server.core.secret import Secret
from evergrant_server.store import Tx
from providers.replies import read_revocation

_LOOK_AGAIN_S = 3.0


class RevocationActivities(ProviderActivities):
    """Tells the provider for as long as it takes, and shreds what is left."""

    @activity.defn(name=ActivityName.ASK_REVOCATION)
    async def ask_revocation(self, order: AskRevocation) -> None:
        """Write `revoking`, unless the API already has."""

        async def ask(tx: Tx) -> None:
            now = self._clock.now()
            current = await connection_of(tx, order)
            if current.state is State.REVOKING or current.state.final:
                return
            await tx.connections.replace(current.revoke_asked(order.reason, now), expected=current.revision)
            await record(tx, order, AuditAction.REVOKE_ASKED, now, reason=order.reason)

        await settled(self._store, ask)

    @activity.defn(name=ActivityName.REVOKE_GRANT)
    async def revoke_grant(self, order: RevokeGrant) -> RevocationNews:
        """Revoke at the provider. Without a confirmation the news carry a failure, never a success."""
        async with heartbeats():
            try:
                held = await self._holder.take(order.tenant, order.connection_id)
                if held.connection.state.final:
                    return RevocationNews(revocation=held.connection.revocation or Revocation.NOTHING_HELD)
                how = await self._tried(order, held)
            except Failure as failure:
                await self._failed(order, failure)
                return revocation_news(failure)
            return await self._done(order, how)

    async def _tried(self, order: RevokeGrant, held: Holdings) -> Revocation:
        try:
            await self._wait_for_answers(held)
            how = await self._tell_with_either_secret(order, held)
        except Failure as failure:
            metrics.revocation_tried(held.spec.name, failure.code)
            raise
        metrics.revocation_tried(held.spec.name, how)
        return how

    async def _tell_with_either_secret(self, order: RevokeGrant, held: Holdings) -> Revocation:
        try:
            return await self._tell(held)
        except Failure as failure:
            if not client_refused(failure) or held.other_client is None:
                raise
        how = await self._tell(with_other(held))
        await self._either_secret.note(order, held)
        return how

    async def _wait_for_answers(self, held: Holdings) -> None:
        """A token that is still on its way must land first, so that it can be revoked too."""
        async with self._store.read() as tx:
            attempt = await open_attempt(tx, held.connection)
        if attempt is not None and self._single_use.may_answer(attempt):
            raise Failure(Code.REFRESH_PENDING, "a token is still on its way", retry_after=_LOOK_AGAIN_S)

    async def _tell(self, held: Holdings) -> Revocation:
        late = await self._late_tokens(held)
        if held.grant is None and not late:
            return Revocation.NOTHING_HELD
        if held.endpoints.revocation_endpoint is None:
            return Revocation.NOT_SUPPORTED
        for tokens in late:  # not believed, and perhaps alive all the same
            hint = "refresh_token" if tokens.refresh_token else "access_token"
            await self._revoke(held, tokens.refresh_token or tokens.access_token, hint)
        if held.grant is None:
            return Revocation.CONFIRMED
        async with self._store.read() as tx:
            refresh_token = await tx.grants.refresh_token(held.connection)
            access_token = await tx.grants.access_token(held.connection)
        rule = held.spec.revocation
        if rule is not None:  # a way of its own: one token ends the whole grant
            if rule.token == "refresh_token" and refresh_token is not None:
                await self._revoke(held, refresh_token, "refresh_token")
            else:
                await self._revoke(held, access_token, "access_token")
            return Revocation.CONFIRMED
        if refresh_token is not None:
            await self._revoke(held, refresh_token, "refresh_token")
        await self._revoke(held, access_token, "access_token")
        return Revocation.CONFIRMED

    async def _late_tokens(self, held: Holdings) -> list[TokenSet]:
        async with self._store.read() as tx:
            found = await tx.late_answers.of(held.connection.tenant, held.connection.id)
            return [await tx.late_answers.tokens(late) for late in found]

    async def _revoke(self, held: Holdings, token: Secret, hint: str) -> None:
        """200 means done, also for an unknown token; 503 means still live (RFC 7009 section 2.2)."""
        reply = await self._sender.revoke(held.spec, held.endpoints, held.client, token=token, hint=hint)
        read_revocation(held.spec, reply)

    async def _failed(self, order: RevokeGrant, failure: Failure) -> None:
        async def note(tx: Tx) -> None:
            await record(tx, order, AuditAction.REVOCATION_FAILED, self._clock.now(), reason=failure.code)

        await settled(self._store, note)

    async def _done(self, order: RevokeGrant, how: Revocation) -> RevocationNews:
        async def done(tx: Tx) -> RevocationNews:
            now = self._clock.now()
            current = await connection_of(tx, order)
            if current.state is State.REVOKED:
                return RevocationNews(revocation=current.revocation)
            attempt = await open_attempt(tx, current)
            if attempt is not None:
                await tx.attempts.close(attempt, Outcome.SUPERSEDED, now)
            await tx.connections.replace(current.revocation_ended(how, now), expected=current.revision)
            await tx.grants.shred(order.tenant, order.connection_id)
            await record(tx, order, AuditAction.REVOKED, now, how=how)
            return RevocationNews(revocation=how)

        return await settled(self._store, done)
