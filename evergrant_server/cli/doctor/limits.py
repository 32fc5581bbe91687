"""Checks of what providers allow."""

from evergrant_server.cli.doctor import CheckFailed
from evergrant_server.cli.doctor.database import _ring, _store
from evergrant_server.core.clock import SystemClock
from evergrant_server.settings import Settings
from providers.definition.registry import Registry

_MOST_NAMED = 5
_MOST_LOOKED_AT = 500


async def token_limits(settings: Settings) -> str:
    """Find integrations whose refreshes use what their provider's token endpoint allows the client."""
    shares = {
        spec.name: spec.token_limit.share for spec in Registry.load().all() if spec.token_limit is not None
    }
    limited = {name: share for name, share in shares.items() if share is not None}
    now, used = SystemClock().now(), list[str]()
    async with _store(settings, _ring(settings)[0]) as store, store.read() as tx:
        integrations = await tx.integrations.at_providers(list(limited), _MOST_LOOKED_AT)
        for integration in integrations:
            until = await tx.attempts.share_used_until(
                integration.tenant, integration.id, limited[integration.provider]
            )
            if until is not None and until > now:
                name = f"{integration.name} (tenant {integration.tenant}) at {integration.provider}"
                used.append(f"{name}, until {until:%H:%M:%S} UTC")
    if not used:
        return f"room for refreshes ahead; {len(integrations)} integrations are at a provider with a limit"
    raise CheckFailed(
        f"refreshes that no caller waits for are postponed: {'; '.join(used[:_MOST_NAMED])}"
        + (", and more" if len(used) > _MOST_NAMED else ""),
        "If it lasts, ask the provider for a higher limit, or set the refresh policy on_demand",
    )
