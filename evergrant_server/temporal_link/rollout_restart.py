"""Onboardings whose workflow is gone: ended by hand, or lost with Temporal's database."""

from evergrant_server.core.messages.connection import RequestContext
from evergrant_server.core.messages.definition_rollout import RolloutStart
from evergrant_server.store import Store
from evergrant_server.temporal_link.link import TemporalLink

_BY = RequestContext(by="reconcile")


async def restart_onboardings(store: Store, link: TemporalLink) -> int:
    """Start the workflow of every definition that isn't done, unless it runs; says how many those are.

    It goes on from what the store says. Raises Failure TEMPORAL_UNAVAILABLE or STORE_UNAVAILABLE.
    """
    async with store.read() as tx:
        open_ones = await tx.definitions.open_versions_of_all_tenants()
    for it in open_ones:
        await link.start_onboarding(
            RolloutStart(
                tenant=it.tenant,
                definition_id=it.id,
                provider=it.name,
                check_interval_s=it.rollout.check_interval_s,
                context=_BY,
            )
        )
    return len(open_ones)
