"""Stories of connections whose tokens need no consent."""

from temporalio.client import Client

from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages import connection as m
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.messages.names import SignalName
from tests.fakes.scripted_activities import ScriptedActivities
from tests.workflows.connection_runs import ASKED, Handle, living


async def client_grant_after_an_outage(client: Client) -> Handle:
    """Without a subject: the first token is requested again after a failure, and so are the next ones."""
    scripted = ScriptedActivities()
    scripted.answers[jobs.REQUEST_CLIENT_GRANT.name].append(
        GrantResult(failure=ErrorCode.PROVIDER_UNREACHABLE)
    )
    async with living(client, scripted, flow="client_credentials") as life:
        await life.consent()
        await life.ensure_fresh(1)
        await life.handle.signal(SignalName.REVOKE, m.Revoke(reason="left", context=ASKED))
        await life.handle.result()
        return life.handle


async def granted_by_an_identity_provider(client: Client) -> Handle:
    """The subject isn't connected there at first; later the identity provider refuses, and then grants."""
    scripted = ScriptedActivities()
    scripted.answers[jobs.REQUEST_CLIENT_GRANT.name].append(GrantResult(failure=ErrorCode.IDENTITY_NEEDED))
    scripted.answers[jobs.REFRESH_GRANT.name].append(GrantResult(failure=ErrorCode.ID_JAG_REFUSED))
    async with living(client, scripted, flow="id_jag") as life:
        await life.consent()
        await life.ensure_fresh(1)
        changed = m.ProviderChanged(version=2, context=ASKED)
        await life.handle.signal(SignalName.PROVIDER_CHANGED, changed)
        await life.ensure_fresh(1)
        await life.handle.signal(SignalName.REVOKE, m.Revoke(reason="left", context=ASKED))
        await life.handle.result()
        return life.handle
