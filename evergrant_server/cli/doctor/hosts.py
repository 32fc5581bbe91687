"""The check of hosts that wait until an operator accepts them."""

from evergrant_server.cli.doctor import COMMAND, CheckFailed
from evergrant_server.cli.doctor.database import _ring, _store
from evergrant_server.cli.pinned_hosts.waiting import waiting
from evergrant_server.settings import Settings
from providers.definition.registry import Registry

_MOST_NAMED = 5


async def hosts(settings: Settings) -> str:
    """Find hosts at which no grant was made: refreshes and revocations wait that would be sent there."""
    named: list[str] = []
    async with _store(settings, _ring(settings)[0]) as store:
        async for waiting_host in waiting(store, Registry.load()):
            if len(named) == _MOST_NAMED:
                named.append("and more")
                break
            if waiting_host.connection is not None:
                waits = f"connection {waiting_host.connection.id} waits"
            else:
                async with store.read() as tx:
                    ids = await tx.pinned_hosts.granted(waiting_host.integration)
                    number = await tx.pinned_hosts.count_granted(waiting_host.integration)
                waits = f"{number} connections wait ({', '.join([*ids[:2], *['…'][: number > 2]])})"
            named.append(f"{waiting_host}: {waits}")
    if not named:
        return "tokens and client credentials go only where grants were made"
    raise CheckFailed("nothing is sent to " + "; ".join(named), f"{COMMAND} authority hosts")
