"""Lives whose grants the provider refuses."""

from temporalio.client import Client

from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import AttemptId
from evergrant_server.core.messages import connection as m
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.messages.names import SignalName
from tests.workflows.connection_runs import ASKED, Handle, a_consent, living

REFRESH = jobs.REFRESH_GRANT.name


async def probably_over_then_reconnected(client: Client) -> Handle:
    """A refusal that doesn't say whose turn it is, a look that finds no evidence, and a control's answer."""
    async with living(client) as life:
        await life.consent()
        refused = GrantResult(failure=ErrorCode.PROVIDER_ERROR, unknown_error=True)
        over = GrantResult(
            failure=ErrorCode.GRANT_PROBABLY_OVER, attempt_id=AttemptId("att_1"), last_try=True
        )
        for news in (refused, GrantResult(undecided=True), over):
            life.scripted.answers[REFRESH].append(news)
            await life.handle.signal(SignalName.PROVIDER_CHANGED, m.ProviderChanged(version=1, context=ASKED))
            await life.ensure_fresh(1)
        await life.until(lambda d: d.reason is ErrorCode.GRANT_PROBABLY_OVER)
        await life.handle.signal(SignalName.CONSENT_GRANTED, a_consent())
        await life.until(lambda d: d.generation == 2)
        return life.handle


async def refused_then_answered_once_reconnected(client: Client) -> Handle:
    """A pipeline asks while the subject has to act; it is told at once, and again when there is a token."""
    async with living(client) as life:
        await life.consent()
        life.scripted.answers[REFRESH].append(GrantResult(failure=ErrorCode.GRANT_REJECTED))
        await life.ensure_fresh(1)
        ask = m.RequestToken(app="crm-sync", reply_to="a-pipeline-that-is-gone", context=ASKED)
        await life.handle.signal(SignalName.REQUEST_TOKEN, ask)
        await life.handle.signal(SignalName.CONSENT_GRANTED, a_consent())
        await life.until(lambda d: d.generation == 2)
        return life.handle
