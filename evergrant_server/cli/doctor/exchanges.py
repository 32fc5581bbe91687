"""Checks of the audit log's newest records: exchanges with providers, and consents without confirmation."""

from datetime import timedelta

from evergrant_server import audit
from evergrant_server.audit.exchanges import newest_exchanges
from evergrant_server.cli.doctor import CheckFailed
from evergrant_server.cli.doctor.database import _ring, _store
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import FAILURES
from evergrant_server.core.ids import Tenant
from evergrant_server.settings import Settings

_READ = 1000  # records, the newest
_MOST_NAMED = 5
_UNCONFIRMED_FOR = timedelta(days=1)
_CONSENTS = (AuditAction.CONSENT_UNCONFIRMED, AuditAction.CONSENT_CONFIRMED, AuditAction.GRANT_INSTALLED)


async def exchanges(settings: Settings) -> str:
    """Each integration's last exchange with its provider worked, unless it is the subject's to repair."""
    async with _store(settings, _ring(settings)[0]) as store, store.read() as tx:
        newest = await newest_exchanges(tx, Tenant(settings.tenant))
    failed = {name: exchange.failure for name, exchange in newest.items() if exchange.failure is not None}
    if not failed:
        return f"the last exchange of each of {len(newest)} integrations worked"
    named = [f"{name}: {code}, {FAILURES[code].meaning}" for name, code in list(failed.items())[:_MOST_NAMED]]
    first, code = next(iter(failed.items()))
    raise CheckFailed(
        f"the last exchange of {len(failed)} of {len(newest)} integrations failed: {' '.join(named)}",
        f"{FAILURES[code].repair} What the provider said: evergrant audit {newest[first].connection}",
    )


async def confirmations(settings: Settings) -> str:
    """Apps confirm the consents that come back to them: one that isn't confirmed is never exchanged."""
    since = SystemClock().now() - _UNCONFIRMED_FOR
    async with _store(settings, _ring(settings)[0]) as store, store.read() as tx:
        consents = await audit.newest_of_tenant(tx, Tenant(settings.tenant), _CONSENTS, among=_READ)
    newest = {record.object: record for record in reversed(consents) if record.at >= since}
    unbound = [
        record.object for record in newest.values() if record.action is AuditAction.CONSENT_UNCONFIRMED
    ]
    if not unbound:
        return "every consent that came back within a day was confirmed"
    raise CheckFailed(
        f"{len(unbound)} consents came back within a day and their apps confirmed none of them in time: "
        f"{', '.join(unbound[:_MOST_NAMED])}",
        "Have the app confirm who consented: docs/guide/binding.md. In a terminal `evergrant connect` does",
    )
