"""The check of how callers' addresses are known."""

from evergrant_server.cli.doctor import CheckFailed
from evergrant_server.cli.doctor.database import _ring, _store
from evergrant_server.settings import Settings


async def addresses(settings: Settings) -> str:
    """Find permits with `sources` behind a proxy that no setting names: they judge the proxy's address."""
    async with _store(settings, _ring(settings)[0]) as store, store.read() as tx:
        count = await tx.access.permits_with_sources()
    if settings.trusted_proxies:
        return f"X-Forwarded-For counts from {', '.join(settings.trusted_proxies)}"
    if count and settings.public_url.startswith("https:"):  # the API itself speaks http
        raise CheckFailed(
            f"{count} permits have sources, and no proxy is named: what ends TLS passes for the caller",
            "EVERGRANT_TRUSTED_PROXIES=<its addresses>    # and have it append to X-Forwarded-For",
        )
    return f"X-Forwarded-For counts from no peer; {count} permits have sources"
