"""What pins hosts on an operator's host: the acceptance of a host, and of rows that have none."""

from collections.abc import Collection
from typing import Any

from evergrant_server.access.transactions import record, run_transaction
from evergrant_server.cli.pinned_hosts.waiting import hosts_of
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Integration
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.outbox import retry_integration_message
from evergrant_server.store import Store, Transaction
from providers.definition.registry import Registry

_OPERATOR = RequestContext(by="operator")


async def accept_hosts(store: Store, clock: Clock, id: str, hosts: Collection[str]) -> Integration:
    """Pin hosts to the integration, with the audit record, and have its failing connections try again.

    Raises Failure INVALID_REQUEST for what is no host, and as `PinnedHostsOfAll.accept`.
    """
    for host in hosts:
        if not host.isascii() or not host.isprintable() or " " in host or host != host.lower():
            why = f"{host!r} is no host: write it as python -m evergrant_server authority hosts does"
            raise Failure(ErrorCode.INVALID_REQUEST, why, field="host")

    async def write(tx: Transaction) -> Integration:
        integration = await tx.pinned_hosts.accept(id, hosts)
        now, named = clock.now(), sorted(set(hosts))
        action = AuditAction.HOSTS_ACCEPTED
        await record(tx, integration.tenant, action, integration.id, _OPERATOR, now, hosts=named)
        await tx.outbox.add(retry_integration_message(integration, _OPERATOR, now))
        return integration

    return await run_transaction(store, write)


async def pin_accepted_rows(store: Store, registry: Registry) -> None:
    """Pin what definitions name now to rows that were accepted without hosts."""
    async with store.read() as tx:
        first = await tx.pinned_hosts.page()
    after: str | None = "" if first else None
    while after is not None:
        async with store.write() as tx:
            after = await tx.pinned_hosts.pin_integrations(after, _Resolver(tx, registry).integration)
    after = ""
    while True:
        async with store.read() as tx:
            page = await tx.pinned_hosts.page(after)
        for integration, _ in page:
            last: str | None = ""
            while last is not None:
                async with store.write() as tx:
                    resolve = _Resolver(tx, registry).grant
                    last = await tx.pinned_hosts.pin_grants(integration, last, resolve)
        if not page:
            return
        after = page[-1][0].id


class _Resolver:
    """The hosts of rows as their definitions name them now; none where a definition is gone."""

    def __init__(self, tx: Transaction, registry: Registry) -> None:
        self._tx = tx
        self._registry = registry

    async def integration(self, integration: Integration) -> tuple[str, ...]:
        hosts = await hosts_of(self._tx, self._registry, integration, {})
        return tuple(written for written, _ in hosts)

    async def grant(self, integration: Integration, id: str, facts: dict[str, Any]) -> tuple[str, ...]:
        hosts = await hosts_of(self._tx, self._registry, integration, facts)
        return tuple(host for _, host in hosts if host)
