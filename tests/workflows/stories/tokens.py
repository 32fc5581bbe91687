"""Stories of tokens that many want at once, that are dated wrongly, or that came too late to be installed."""

import asyncio
from datetime import UTC, datetime, timedelta

from temporalio.client import Client

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import AttemptId, new_id
from evergrant_server.core.messages import connection as m
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.messages.connection import LateTokensReceived
from evergrant_server.core.messages.names import ActivityName, SignalName
from tests.fakes.scripted_activities import ScriptedActivities
from tests.workflows.connection_runs import ASKED, Handle, a_consent, a_grant, living


async def asked_by_many_at_once(client: Client) -> Handle:
    """Two pipelines find out that the grant is dead, and hear again; then many want one newer token."""
    scripted = ScriptedActivities(lifetime=timedelta(seconds=1))
    async with living(client, scripted, policy="on_demand") as life:
        await life.consent()
        await asyncio.sleep(1.1)
        scripted.answers[ActivityName.REFRESH_GRANT].append(GrantResult(failure=ErrorCode.GRANT_REJECTED))
        for pipeline in ("one-that-is-gone", "another-that-is-gone"):
            ask = m.RequestToken(app="crm-sync", reply_to=pipeline, context=ASKED)
            await life.handle.signal(SignalName.REQUEST_TOKEN, ask)
        await life.until(lambda d: d.reason is ErrorCode.GRANT_REJECTED)
        await life.handle.signal(SignalName.CONSENT_GRANTED, a_consent())
        await life.until(lambda d: d.generation == 2)
        newer = m.Rotate(reason="its token is to be exchanged", context=ASKED, seen_generation=2)
        for _ in range(3):
            await life.handle.signal(SignalName.ROTATE, newer)
        await life.until(lambda d: d.generation == 3)
        return life.handle


async def reported_while_an_answer_is_lost(client: Client) -> Handle:
    """A token that has no end is reported; an answer is lost, and the next try knows of the report."""
    scripted = ScriptedActivities()
    endless = a_grant(lasts=None)
    scripted.answers[ActivityName.EXCHANGE_CODE].append(endless)
    lost = GrantResult(failure=ErrorCode.PROVIDER_UNREACHABLE)
    newer = endless.model_copy(update={"generation": 2})
    scripted.answers[ActivityName.REFRESH_GRANT] += [lost, newer]
    async with living(client, scripted, policy="on_demand") as life:
        await life.consent()
        await life.ensure_fresh(1, reported=True)
        await life.until(lambda d: d.generation == 2)
        orders = [order for name, order in scripted.calls if name == ActivityName.REFRESH_GRANT]
        assert [order.token_over for order in orders] == [True, True]
        return life.handle


async def tokens_dated_ahead(client: Client) -> Handle:
    """Tokens that are dated an hour ahead; each is over after two seconds all the same, and reported."""
    async with living(client, policy="on_demand") as life:
        for generation, name in enumerate((ActivityName.EXCHANGE_CODE, *[ActivityName.REFRESH_GRANT] * 2)):
            ahead = datetime.now(UTC) + timedelta(hours=1)
            dates = {"obtained_at": ahead, "expires_at": ahead + timedelta(seconds=2)}
            life.scripted.answers[name].append(a_grant(generation + 1, **dates))
            if not generation:
                described = await life.consent()
            else:
                await life.ensure_fresh(generation, reported=True)
                described = await life.until(lambda d, seen=generation: d.generation > seen)
            assert described.expires_at is not None
            await asyncio.sleep((described.expires_at - datetime.now(UTC)).total_seconds() + 0.1)
        return life.handle


REFRESH = ActivityName.REFRESH_GRANT


async def late_tokens_verified(client: Client) -> Handle:
    """Given up, an outage while the late answer is verified, and back."""
    async with living(client) as life:
        await life.consent()
        life.scripted.answers[REFRESH].append(GrantResult(failure=ErrorCode.OUTCOME_UNKNOWN))
        await life.ensure_fresh(1)
        await life.until(lambda d: d.state is LifecycleState.NEEDS_REAUTH)
        life.scripted.answers[ActivityName.VERIFY_LATE_TOKENS].append(
            GrantResult(failure=ErrorCode.PROVIDER_ERROR)
        )
        came = LateTokensReceived(attempt_id=AttemptId(new_id("att")), context=ASKED)
        await life.handle.signal(SignalName.LATE_TOKENS_RECEIVED, came)
        await life.until(lambda d: d.state is LifecycleState.ACTIVE)
        return life.handle


async def late_tokens_beside_a_grant(client: Client) -> Handle:
    """A journal has a newer grant than the one that works, and then the same signal arrives again."""
    async with living(client) as life:
        await life.consent()
        newer = a_grant(2)
        life.scripted.answers[ActivityName.VERIFY_LATE_TOKENS] += [newer, newer]
        for _ in range(2):
            came = LateTokensReceived(attempt_id=AttemptId(new_id("att")), context=ASKED)
            await life.handle.signal(SignalName.LATE_TOKENS_RECEIVED, came)
            await life.until(lambda d: d.generation == 2)
        return life.handle


async def short_lived_token_exchanged(client: Client) -> Handle:
    """A first token that is exchanged for a long-lived one: at once, and again after an outage."""
    scripted = ScriptedActivities()
    scripted.answers[ActivityName.EXCHANGE_CODE].append(a_grant(lasts=None, short_lived=True))
    end = datetime.now(UTC) + timedelta(days=60)
    long_lived = a_grant(2, expires_at=end, refresh_expires_at=end, ends_together=True)
    scripted.answers[REFRESH] += [GrantResult(failure=ErrorCode.PROVIDER_ERROR), long_lived]
    async with living(client, scripted) as life:
        await life.consent()
        described = await life.until(lambda d: d.generation == 2)
        assert described.next_step == "refresh long before the token ends"
        return life.handle


async def late_tokens_one_after_another(client: Client) -> Handle:
    """The first waits through an outage, the second is refused, and so the first is tried again."""
    async with living(client) as life:
        await life.consent()
        life.scripted.answers[REFRESH].append(GrantResult(failure=ErrorCode.OUTCOME_UNKNOWN))
        await life.ensure_fresh(1)
        await life.until(lambda d: d.state is LifecycleState.NEEDS_REAUTH)
        first, second = (
            LateTokensReceived(attempt_id=AttemptId(new_id("att")), context=ASKED) for _ in range(2)
        )
        verify = ActivityName.VERIFY_LATE_TOKENS
        away = GrantResult(failure=ErrorCode.PROVIDER_ERROR, retry_after=600)
        refused = GrantResult(failure=ErrorCode.GRANT_REJECTED, next_late_attempt=first.attempt_id)
        life.scripted.answers[verify] += [away, refused]
        await life.handle.signal(SignalName.LATE_TOKENS_RECEIVED, first)
        await life.until(lambda d: d.next_at is not None)
        await life.handle.signal(SignalName.LATE_TOKENS_RECEIVED, second)
        await life.until(lambda d: d.state is LifecycleState.ACTIVE)
        return life.handle
