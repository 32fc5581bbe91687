"""Stories of one connection: consent, refreshes, outages, late tokens, revocation."""

import asyncio
from datetime import UTC, datetime, timedelta

from temporalio.client import Client

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.device_code import DevicePoll
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import AttemptId, new_id
from evergrant_server.core.messages import connection as m
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.activities import GrantResult, LapseResult, RevocationResult
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.connection import AccountChosen, LateTokensReceived, RevokedAtProvider
from evergrant_server.core.messages.names import SignalName
from evergrant_server.core.provider_events import ReportSource
from tests.fakes.patience import eventually
from tests.fakes.scripted_activities import ScriptedActivities
from tests.workflows.connection_runs import ASKED, Handle, Life, a_consent, a_grant, living

REFRESH = jobs.REFRESH_GRANT.name


async def whole_life(client: Client) -> Handle:
    async with living(client) as life:
        await life.consent()
        await life.ensure_fresh(1)
        await life.handle.signal(SignalName.REVOKE, m.Revoke(reason="left", context=ASKED))
        await life.handle.result()
        return life.handle


async def consent_denied(client: Client) -> Handle:
    async with living(client) as life:
        no = m.ConsentDenied(consent_id=a_consent().consent_id, context=ASKED)
        await life.handle.signal(SignalName.CONSENT_DENIED, no)
        await life.handle.result()
        return life.handle


async def confirmed_after_a_first_try_was_not(client: Client) -> Handle:
    """A browser comes back twice: the app is silent, then late by the worker's clock, and then confirms."""
    scripted, now = ScriptedActivities(), datetime.now(UTC)
    scripted.answers[jobs.LAPSE_CONSENT.name].append(LapseResult(confirm_by=now + timedelta(seconds=1)))
    async with living(client, scripted) as life:
        consent = a_consent()
        for until, lapses in ((now, 2), (now + timedelta(minutes=2), 2)):
            came = m.ConsentReturned(consent_id=consent.consent_id, until=until, context=ASKED)
            await life.handle.signal(SignalName.CONSENT_RETURNED, came)
            await life.until_called(jobs.LAPSE_CONSENT.name, lapses)
        await life.handle.signal(SignalName.CONSENT_GRANTED, consent)
        await life.until(lambda d: d.generation == 1)
        return life.handle


async def consent_expired(client: Client) -> Handle:
    async with living(client, consent_deadline=datetime.now(UTC) - timedelta(seconds=58)) as life:
        await life.handle.result()
        return life.handle


async def consent_granted_by_a_later_link(client: Client) -> Handle:
    """The deadline passes, and the store has a later one: another link was offered since."""
    scripted, now = ScriptedActivities(), datetime.now(UTC)
    postponed = GrantResult(state=LifecycleState.PENDING_CONSENT, consent_deadline=now + timedelta(hours=1))
    scripted.answers[jobs.END_CONSENT.name].append(postponed)
    async with living(client, scripted, consent_deadline=now - timedelta(minutes=1)) as life:
        await life.until_called(jobs.END_CONSENT.name)
        await life.until(lambda d: d.state is LifecycleState.PENDING_CONSENT)
        await life.consent()
        return life.handle


async def outage_then_refused_then_reconnected(client: Client) -> Handle:
    async with living(client) as life:
        await life.consent()
        life.scripted.answers[REFRESH] += [
            GrantResult(failure=ErrorCode.PROVIDER_UNREACHABLE),
            GrantResult(failure=ErrorCode.PROVIDER_RATE_LIMITED, retry_after=1),
            GrantResult(failure=ErrorCode.GRANT_REJECTED),
        ]
        await life.ensure_fresh(1)
        await life.until(lambda d: d.state is LifecycleState.NEEDS_REAUTH)
        await life.handle.signal(SignalName.CONSENT_GRANTED, a_consent())
        await life.until(lambda d: d.state is LifecycleState.ACTIVE)
        return life.handle


async def idle_then_kept_alive(client: Client) -> Handle:
    scripted = ScriptedActivities(lifetime=timedelta(seconds=2), idle_s=8)
    scripted.answers[REFRESH].append(GrantResult(not_leased=True))
    async with living(client, scripted) as life:
        await life.consent()
        await life.until(lambda d: d.generation == 2)
        return life.handle


async def asked_by_a_pipeline_while_revoking(client: Client) -> Handle:
    scripted = ScriptedActivities()
    scripted.answers[jobs.REVOKE_GRANT.name].append(RevocationResult(failure=ErrorCode.PROVIDER_ERROR))
    async with living(client, scripted) as life:
        await life.consent()
        await life.handle.signal(SignalName.REVOKE, m.Revoke(reason="left", context=ASKED))
        ask = m.RequestToken(app="crm-sync", reply_to="a-pipeline-that-is-gone", context=ASKED)
        await life.handle.signal(SignalName.REQUEST_TOKEN, ask)
        await life.handle.result()
        return life.handle


async def narrower_tokens_beside_the_main_one(client: Client) -> Handle:
    """One comes, one is refused without a failure, one meets an outage; then the main token is refreshed."""
    async with living(client) as life:
        first = await life.consent()
        kept = {"access_generation": 1, "expires_at": first.expires_at}
        life.scripted.answers[REFRESH] += [
            a_grant(2, **kept),
            GrantResult(unchanged=True),
            GrantResult(failure=ErrorCode.PROVIDER_RATE_LIMITED, retry_after=1),
            a_grant(3),
        ]
        for seen, scope in ((1, "read"), (2, "write"), (2, "admin")):
            await life.ensure_fresh(seen, scopes=(scope,))
        await life.until(lambda d: d.generation == 3)
        return life.handle


async def rotated_and_repaired(client: Client) -> Handle:
    async with living(client, policy="warm") as life:
        await life.consent()
        await life.handle.signal(SignalName.ROTATE, m.Rotate(reason="leak suspected", context=ASKED))
        await life.until(lambda d: d.generation == 2)
        life.scripted.answers[REFRESH].append(GrantResult(failure=ErrorCode.CLIENT_REJECTED))
        await life.ensure_fresh(2)
        await life.handle.signal(SignalName.PROVIDER_CHANGED, m.ProviderChanged(version=2, context=ASKED))
        await life.ensure_fresh(2)
        return life.handle


async def revoked_elsewhere_then_reconnected(client: Client) -> Handle:
    async with living(client) as life:
        await life.consent()
        over = RevokedAtProvider(
            generation=1, source=ReportSource.SECURITY_EVENT, context=RequestContext(by="provider")
        )
        await life.handle.signal(SignalName.REVOKED_AT_PROVIDER, over)
        await life.until(lambda d: d.state is LifecycleState.NEEDS_REAUTH)
        await life.handle.signal(SignalName.CONSENT_GRANTED, a_consent())
        await life.until(lambda d: d.state is LifecycleState.ACTIVE)
        return life.handle


async def _first_run(client: Client, life: Life) -> Handle:
    """The run that it began with, once it has closed."""
    first = client.get_workflow_handle(life.handle.id, run_id=life.handle.first_execution_run_id)
    await eventually(first.describe, lambda it: it.close_time)
    return first


async def continued_as_new(client: Client) -> Handle:
    """Recorded with the newest rules: a run that is as long as runs get."""
    async with living(client) as life:
        await life.consent()
        rotate = m.Rotate(reason="many", context=ASKED)
        await asyncio.gather(*(life.handle.signal(SignalName.ROTATE, rotate) for _ in range(330)))
        return await _first_run(client, life)


async def cancelled_in_the_middle_of_a_refresh(client: Client) -> Handle:
    """The refresh is finished, and another run goes on."""
    async with living(client) as life:
        await life.consent()
        gate = asyncio.Event()
        life.scripted.answers[REFRESH].append(gate)
        asked = asyncio.create_task(life.ensure_fresh(1))
        await life.until_called(REFRESH)
        await life.handle.cancel()
        gate.set()
        await asked
        return await _first_run(client, life)


async def approved_on_another_device(client: Client) -> Handle:
    """A code is asked about until it was approved: slower when told so, and when nothing is heard."""
    scripted = ScriptedActivities()
    scripted.answers[jobs.POLL_DEVICE_TOKEN.name] += [
        GrantResult(device_poll=DevicePoll.STARTED, interval_s=0.2),
        GrantResult(device_poll=DevicePoll.PENDING),
        GrantResult(device_poll=DevicePoll.NO_ANSWER),
    ]
    async with living(client, scripted, flow="device_code") as life:
        await life.consent()
        await life.ensure_fresh(1)
        return life.handle


async def device_code_denied(client: Client) -> Handle:
    scripted = ScriptedActivities()
    scripted.answers[jobs.POLL_DEVICE_TOKEN.name] += [
        GrantResult(device_poll=DevicePoll.STARTED, interval_s=0.2),
        GrantResult(failure=ErrorCode.CONSENT_DENIED, consent_over=True),
    ]
    async with living(client, scripted, flow="device_code") as life:
        await life.handle.signal(SignalName.CONSENT_GRANTED, a_consent())
        await life.handle.result()
        return life.handle


async def end_announced(client: Client) -> Handle:
    """A grant that can't be refreshed lasts a day and a little: that is recorded, and a 401 reported."""
    scripted = ScriptedActivities(lifetime=timedelta(days=1, seconds=2))
    granted = a_grant(lasts=timedelta(days=1, seconds=2), refreshable=False)
    scripted.answers[jobs.EXCHANGE_CODE.name].append(granted)
    async with living(client, scripted) as life:
        await life.consent()
        await life.until_called(jobs.ANNOUNCE_EXPIRY.name)
        scripted.generation = 1
        for generation in (1, 2):  # the second is declined
            await life.ensure_fresh(generation, reported=True)
        return life.handle


async def accounts_looked_up_and_chosen(client: Client) -> Handle:
    """An outage while the provider is asked, then several accounts, then a choice."""
    scripted = ScriptedActivities()
    news = a_grant(account_lookup_needed=True)
    async with living(client, scripted) as life:
        scripted.answers[jobs.EXCHANGE_CODE.name].append(news)
        away = GrantResult(failure=ErrorCode.PROVIDER_ERROR)
        several = news.model_copy(update={"account_lookup_needed": False, "choice_pending": True})
        scripted.answers[jobs.LOOK_UP_ACCOUNTS.name] += [away, several]
        await life.consent()
        await life.until(lambda d: d.reason is ErrorCode.CHOICE_REQUIRED)
        await life.handle.signal(SignalName.ACCOUNT_CHOSEN, AccountChosen(choice="site-1", context=ASKED))
        await life.until(lambda d: d.reason is None)
        return life.handle


async def asked_by_many_at_once(client: Client) -> Handle:
    """Two pipelines find out that the grant is dead, and hear again; then many want one newer token."""
    scripted = ScriptedActivities(lifetime=timedelta(seconds=1))
    async with living(client, scripted, policy="on_demand") as life:
        await life.consent()
        await asyncio.sleep(1.1)
        scripted.answers[jobs.REFRESH_GRANT.name].append(GrantResult(failure=ErrorCode.GRANT_REJECTED))
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
    scripted.answers[jobs.EXCHANGE_CODE.name].append(endless)
    lost = GrantResult(failure=ErrorCode.PROVIDER_UNREACHABLE)
    newer = endless.model_copy(update={"generation": 2})
    scripted.answers[jobs.REFRESH_GRANT.name] += [lost, newer]
    async with living(client, scripted, policy="on_demand") as life:
        await life.consent()
        await life.ensure_fresh(1, reported=True)
        await life.until(lambda d: d.generation == 2)
        orders = [order for name, order in scripted.calls if name == jobs.REFRESH_GRANT.name]
        assert [order.token_over for order in orders] == [True, True]
        return life.handle


async def tokens_dated_ahead(client: Client) -> Handle:
    """Tokens that are dated an hour ahead; each is over after two seconds all the same, and reported."""
    async with living(client, policy="on_demand") as life:
        for generation, name in enumerate((jobs.EXCHANGE_CODE.name, *[jobs.REFRESH_GRANT.name] * 2)):
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


async def late_tokens_verified(client: Client) -> Handle:
    """Given up, an outage while the late answer is verified, and back."""
    async with living(client) as life:
        await life.consent()
        life.scripted.answers[REFRESH].append(GrantResult(failure=ErrorCode.OUTCOME_UNKNOWN))
        await life.ensure_fresh(1)
        await life.until(lambda d: d.state is LifecycleState.NEEDS_REAUTH)
        life.scripted.answers[jobs.VERIFY_LATE_TOKENS.name].append(
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
        life.scripted.answers[jobs.VERIFY_LATE_TOKENS.name] += [newer, newer]
        for _ in range(2):
            came = LateTokensReceived(attempt_id=AttemptId(new_id("att")), context=ASKED)
            await life.handle.signal(SignalName.LATE_TOKENS_RECEIVED, came)
            await life.until(lambda d: d.generation == 2)
        return life.handle


async def short_lived_token_exchanged(client: Client) -> Handle:
    """A first token that is exchanged for a long-lived one: at once, and again after an outage."""
    scripted = ScriptedActivities()
    scripted.answers[jobs.EXCHANGE_CODE.name].append(a_grant(lasts=None, short_lived=True))
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
        verify = jobs.VERIFY_LATE_TOKENS.name
        away = GrantResult(failure=ErrorCode.PROVIDER_ERROR, retry_after=600)
        refused = GrantResult(failure=ErrorCode.GRANT_REJECTED, next_late_attempt=first.attempt_id)
        life.scripted.answers[verify] += [away, refused]
        await life.handle.signal(SignalName.LATE_TOKENS_RECEIVED, first)
        await life.until(lambda d: d.next_at is not None)
        await life.handle.signal(SignalName.LATE_TOKENS_RECEIVED, second)
        await life.until(lambda d: d.state is LifecycleState.ACTIVE)
        return life.handle


async def revoked_while_many_pipelines_ask(client: Client) -> Handle:
    """The revocation overtakes their requests, and the replies are sent side by side."""
    async with living(client) as life:
        await life.consent()
        gate = asyncio.Event()
        life.scripted.answers[REFRESH].append(gate)
        refresh = asyncio.create_task(life.ensure_fresh(1))
        await life.until_called(REFRESH)
        for pipeline in ("gone", "gone", "gone-too"):  # the same reply to the same workflow is sent once
            ask = m.RequestToken(app="crm-sync", reply_to=pipeline, context=ASKED)
            await life.handle.signal(SignalName.REQUEST_TOKEN, ask)
        await life.handle.signal(SignalName.REVOKE, m.Revoke(reason="left", context=ASKED))
        gate.set()
        await refresh
        await life.handle.result()
        return life.handle
