"""Onboardings whose workflow is gone: ended by hand, or lost with Temporal's database."""

from evergrant_server.core.messages import Asked
from evergrant_server.core.onboarding import OnboardingStart
from evergrant_server.store import Store
from evergrant_server.temporal_link.link import TemporalLink

_BY = Asked(by="reconcile")


async def restart_onboardings(store: Store, link: TemporalLink) -> int:
    """Start the workflow of every definition that isn't done, unless it runs; says how many those are.

    It goes on from what the store says. Raises Failure TEMPORAL_UNAVAILABLE or STORE_UNAVAILABLE.
    """
    async with store.read() as tx:
        open_ones = await tx.definitions.all_unfinished()
    for it in open_ones:
        await link.start_onboarding(
            OnboardingStart(
                tenant=it.tenant,
                definition_id=it.id,
                provider=it.name,
                watch_s=it.rollout.watch_s,
                asked=_BY,
            )
        )
    return len(open_ones)
