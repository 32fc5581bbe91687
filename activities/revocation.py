"""Revocation: the store first, then the provider, then `revoked` (RFC 7009)."""

import logging

from temporalio import activity

from activities.client_secrets import with_either_secret
from activities.failures import revocation_news
from activities.heartbeat import heartbeats
from activities.holdings import Holdings
from activities.provider_activities import ProviderActivities
from activities.records import connection_of, record, settled
from activities.single_use import open_attempt
from activities.telling import ended_at_provider
from activities.unwanted import every_chain, of_facts
from evergrant_server import telemetry_metrics as metrics
from evergrant_server.core.attempt import Outcome
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connection import Revocation, State
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.grant import TokenSet
from evergrant_server.core.messages import ActivityName, AskRevocation, RevocationNews, RevokeGrant
from evergrant_server.core.secret import Secret
from evergrant_server.store import Tx
from evergrant_server.telemetry import frames, say
from evergrant_server.telemetry_names import Event

log = logging.getLogger("evergrant.activities")

_LOOK_AGAIN_S = 3.0
_FROM_BEST = (Revocation.CONFIRMED, Revocation.ACCESS_TOKEN_ONLY, Revocation.NOT_SUPPORTED)
_FORGOTTEN = "asked for before, and the store came from an older backup"


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
                how = await self._tried(order, held.believed())  # a wrong endpoint would say yes, too
            except Failure as failure:
                return await self._failed(order, failure)
            except Exception as unexpected:
                # its text may quote anything; tried again ever more slowly, as what has a name
                what = f"revoke_grant: {type(unexpected).__name__} at {frames(unexpected)[-1]}"
                say(log, logging.ERROR, Event.ACTIVITY_FAILED, what, object=order.connection_id)
                return await self._failed(order, Failure(Code.INTERNAL))
            return await self._done(order, how, held.connection.generation)

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
        how, other = await with_either_secret(held, self._tell)
        if other:
            await self._either_secret.note(order, held)
        return how

    async def _wait_for_answers(self, held: Holdings) -> None:
        """A token that is still on its way must land first, so that it can be revoked too."""
        its = held.connection
        async with self._store.read() as tx:
            attempt = await open_attempt(tx, its)
            taken_over = await tx.attempts.superseded(its.tenant, its.id, its.generation)
        may_come = attempt is not None and self._single_use.may_answer(attempt)
        if may_come or self._single_use.kept_late(taken_over):
            raise Failure(Code.REFRESH_PENDING, "a token is still on its way", retry_after=_LOOK_AGAIN_S)

    async def _tell(self, held: Holdings) -> Revocation:
        late = await self._late_tokens(held)
        if held.grant is None and not late:
            return Revocation.NOTHING_HELD
        flow = held.connection.flow
        if held.endpoints.revocation_endpoint is None or flow.static or not flow.bears:
            # a key that somebody brought is theirs to take back; OAuth 1.0a has no revocation
            return Revocation.NOT_SUPPORTED
        # late ones are not believed, and perhaps alive all the same
        told = [await self._ended(of_facts(held, it), it.refresh_token, it.access_token) for it in late]
        if held.grant is not None:
            async with self._store.read() as tx:
                refresh_token = await tx.grants.refresh_token(held.connection)
                access_token = await tx.grants.access_token(held.connection)
            told.append(await self._ended(held, refresh_token, access_token))
        return max(told, key=_FROM_BEST.index)

    async def _ended(self, held: Holdings, refresh_token: Secret | None, access_token: Secret) -> Revocation:
        brought = held.connection.flow.mints  # to be exchanged: that is not ours to end
        return await ended_at_provider(self._sender, held, None if brought else refresh_token, access_token)

    async def _late_tokens(self, held: Holdings) -> list[TokenSet]:
        async with self._store.read() as tx:
            found = await tx.late_answers.of(held.connection.tenant, held.connection.id)
            return [it for late in found for it in every_chain(await tx.late_answers.tokens(late))]

    async def _failed(self, order: RevokeGrant, failure: Failure) -> RevocationNews:
        news = revocation_news(failure)
        if failure.code is Code.REFRESH_PENDING:
            return news  # nothing was tried yet

        async def note(tx: Tx) -> None:
            await record(tx, order, AuditAction.REVOCATION_FAILED, self._clock.now(), reason=failure.code)

        await settled(self._store, note)
        return news

    async def _done(self, order: RevokeGrant, how: Revocation, told: int) -> RevocationNews:
        """Shred what the provider was told of: the generation `told`, and nothing that came meanwhile."""

        async def done(tx: Tx) -> RevocationNews:
            now = self._clock.now()
            current = await connection_of(tx, order)
            if current.state is State.REVOKED:
                return RevocationNews(revocation=current.revocation)
            if current.generation != told:  # a journal's answer was taken for lost, and landed all the same
                return RevocationNews(failure=Code.REFRESH_PENDING, retry_after=_LOOK_AGAIN_S)
            attempt = await open_attempt(tx, current)
            if attempt is not None:
                await tx.attempts.close(attempt, Outcome.SUPERSEDED, now)
            asked = current if current.state is State.REVOKING else current.revoke_asked(_FORGOTTEN, now)
            await tx.connections.replace(asked.revocation_ended(how, now), expected=current.revision)
            destroyed = await tx.grants.shred(order.tenant, order.connection_id)
            said = {"how": how, "keys_destroyed": destroyed}
            lost = attempt or await tx.attempts.unread(order.tenant, order.connection_id, told)
            if lost is not None:  # a token that came with it was never seen, and so never revoked
                said["answer_lost"] = lost.id
            await record(tx, order, AuditAction.REVOKED, now, **said)
            return RevocationNews(revocation=how)

        return await settled(self._store, done)
