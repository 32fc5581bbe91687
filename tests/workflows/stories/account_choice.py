"""Stories of connections whose grant reaches several accounts."""

from datetime import UTC, datetime, timedelta

from temporalio.client import Client

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.messages.base import ActivityName, SignalName
from evergrant_server.core.messages.connection import AccountChosen
from tests.fakes.scripted_activities import ScriptedActivities
from tests.workflows.connection_runs import ASKED, Life, living


async def accounts_looked_up_and_chosen(client: Client) -> Life:
    """An outage while the provider is asked, then several accounts, then a choice."""
    scripted = ScriptedActivities()
    now = datetime.now(UTC)
    news = GrantResult(
        state=LifecycleState.ACTIVE,
        generation=1,
        obtained_at=now,
        expires_at=now + timedelta(hours=1),
        refreshable=True,
        account_lookup_needed=True,
    )
    async with living(client, scripted) as life:
        scripted.answers[ActivityName.EXCHANGE_CODE].append(news)
        away = GrantResult(failure=ErrorCode.PROVIDER_ERROR)
        several = news.model_copy(update={"account_lookup_needed": False, "choice_pending": True})
        scripted.answers[ActivityName.LOOK_UP_ACCOUNTS] += [away, several]
        await life.consent()
        await life.until(lambda d: d.reason is ErrorCode.CHOICE_REQUIRED)
        await life.handle.signal(SignalName.ACCOUNT_CHOSEN, AccountChosen(choice="site-1", context=ASKED))
        await life.until(lambda d: d.reason is None)
        return life
