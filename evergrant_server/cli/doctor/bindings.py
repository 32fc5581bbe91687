"""Checks of how integrations bind consents to their subjects."""

from urllib.parse import urlsplit

from evergrant_server.cli.doctor import CheckFailed
from evergrant_server.cli.doctor.database import _ring, _store
from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.errors import Failure
from evergrant_server.core.integrations import require_pinned_login
from evergrant_server.setting_types import is_loopback
from evergrant_server.settings import Settings

_MOST_NAMED = 5


async def bindings(settings: Settings) -> str:
    """Find integrations whose consents aren't bound to their subjects: no problem on one's own machine."""
    async with _store(settings, _ring(settings)[0]) as store, store.read() as tx:
        unbound = await tx.integrations.with_binding(Binding.NONE, _MOST_NAMED + 1)
    named = ", ".join(
        f"{integration.name} (tenant {integration.tenant})" for integration in unbound[:_MOST_NAMED]
    )
    named += " and more" if len(unbound) > _MOST_NAMED else ""
    if not unbound:
        return "every integration binds consents to their subjects"
    if is_loopback(urlsplit(settings.public_url).hostname or ""):
        return f"unbound: {named}; any person who opens their links connects an account"
    raise CheckFailed(
        f"any person who opens a connect link connects their own account at {named}",
        "PUT /v1/integrations/{name} with the binding app; see docs/guide/binding.md",
    )


async def logins(settings: Settings) -> str:
    """Find integrations of the binding `oidc` at whose issuer no subject can log in."""
    broken: list[str] = []
    async with _store(settings, _ring(settings)[0]) as store, store.read() as tx:
        bound = await tx.integrations.with_binding(Binding.OIDC, 1000)
        for integration in bound:
            named = (
                None
                if integration.login is None
                else await tx.integrations.by_name(integration.tenant, integration.login.integration)
            )
            try:
                require_pinned_login(integration.login, named)
            except Failure as failure:
                broken.append(f"{integration.name} (tenant {integration.tenant}): {failure.detail}")
    if not broken:
        return f"{len(bound)} integrations have their subjects log in first"
    rest = " And more." if len(broken) > _MOST_NAMED else ""
    raise CheckFailed(
        " ".join(broken[:_MOST_NAMED]) + rest,
        "PUT /v1/integrations/{name} for the one that the login names, or for this one again, which pins the "
        "login to that one's issuer; see docs/guide/binding.md",
    )
