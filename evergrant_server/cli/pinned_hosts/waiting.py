"""Which hosts wait to be accepted, and for which connections."""

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import Failure
from evergrant_server.core.integrations import Integration
from evergrant_server.store import Store, Transaction
from providers.definition.registry import Registry
from providers.definition.schema import ProviderSpec
from providers.definition.templates import params_from_metadata
from providers.requests.hosts import is_pinned, secret_hosts, waiting_hosts


@dataclass(frozen=True)
class WaitingHost:
    """A host to which nothing is sent. `connection`: None for all of the integration's, since its definition
    or its metadata names the host; else the one whose own facts name it."""

    integration: Integration
    host: str
    connection: Connection | None = None

    def __str__(self) -> str:
        where = f"{self.integration.name} ({self.integration.id}, tenant {self.integration.tenant})"
        return f"{self.host} of {where}"


async def waiting(store: Store, registry: Registry) -> AsyncIterator[WaitingHost]:
    """Each host that waits, of every tenant."""
    after = ""
    while True:
        async with store.read() as tx:
            page = await tx.pinned_hosts.page(after)
            hosts = [
                WaitingHost(integration, host)
                for integration, pinned in page
                for host in await _waiting_of(tx, registry, integration, pinned)
            ]
        for host in hosts:
            yield host
        if not page:
            break
        after = page[-1][0].id
    async for host in _waiting_connections(store, registry):
        yield host


async def print_waiting_hosts(store: Store, registry: Registry) -> None:
    """Print each host, and the ids of the connections that wait for it, page by page."""
    number = 0
    async for host in waiting(store, registry):
        number += 1
        if host.connection is not None:
            print(f"{host}: connection {host.connection.id}")
            continue
        async with store.read() as tx:
            print(f"{host}: {await tx.pinned_hosts.count_granted(host.integration)} connections")
        after = ""
        while True:
            async with store.read() as tx:
                page = await tx.pinned_hosts.granted(host.integration, after)
            if not page:
                break
            print(*(f"  {id}" for id in page), sep="\n")
            after = page[-1]
    if number:
        print(
            "If the provider has moved there: python -m evergrant_server authority accept-hosts INTEGRATION "
            "--host 'HOST'. If not, find out who has changed the definition."
        )
    else:
        print("every host is one at which a grant was made, or that was accepted")


async def hosts_of(
    tx: Transaction, registry: Registry, integration: Integration, facts: Mapping[str, Any]
) -> list[tuple[str, str | None]]:
    hosts: list[tuple[str, str | None]] = []
    for spec in await _specs(tx, registry, integration):
        try:
            params = integration.params | params_from_metadata(spec, facts)
            hosts += secret_hosts(spec, integration, params)
        except Failure:
            continue  # it doesn't fit the integration: no worker uses it
    return hosts


async def _waiting_of(
    tx: Transaction, registry: Registry, integration: Integration, pinned: Collection[str]
) -> list[str]:
    hosts: set[str] = set()
    for spec in await _specs(tx, registry, integration):
        try:
            hosts |= set(waiting_hosts(spec, integration, pinned))
        except Failure:
            continue
    return sorted(hosts)


async def _waiting_connections(store: Store, registry: Registry) -> AsyncIterator[WaitingHost]:
    """Connections whose own facts name a host that isn't pinned, as their last refresh has found."""
    after = ("", "")
    while True:
        waiting_hosts: list[WaitingHost] = []
        async with store.read() as tx:
            page = await tx.pinned_hosts.refused(after)
            for connection, pinned, facts in page:
                integration = await tx.integrations.get(connection.tenant, connection.integration_id)
                if integration is None:
                    continue
                hosts = await hosts_of(tx, registry, integration, facts)
                moved = {host for written, host in hosts if host and "{" in written}
                new = sorted(host for host in moved if not is_pinned(host, pinned))
                waiting_hosts += [WaitingHost(integration, host, connection) for host in new]
        for host in waiting_hosts:
            yield host
        if not page:
            return
        after = (page[-1][0].tenant, page[-1][0].id)


async def _specs(tx: Transaction, registry: Registry, integration: Integration) -> list[ProviderSpec]:
    """Every definition that a worker may use for the integration, a staged version among them."""
    versions = await tx.definitions.serving(integration.tenant, integration.provider)
    specs: list[ProviderSpec] = []
    with suppress(Failure):  # the catalogue has it no more
        specs += [spec for spec, _ in registry.candidates(integration.provider, versions)]
    for version in versions:
        with suppress(Failure):
            specs.append(registry.parse(version))
    return specs
