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
        async for it in waiting(store, Registry.load()):
            if len(named) == _MOST_NAMED:
                named.append("and more")
                break
            if it.connection is not None:
                who = f"connection {it.connection.id} waits"
            else:
                async with store.read() as tx:
                    ids = await tx.pinned_hosts.granted(it.integration)
                    number = await tx.pinned_hosts.count_granted(it.integration)
                who = f"{number} connections wait ({', '.join([*ids[:2], *['…'][: number > 2]])})"
            named.append(f"{it}: {who}")
    if not named:
        return "tokens and client credentials go only where grants were made"
    raise CheckFailed("nothing is sent to " + "; ".join(named), f"{COMMAND} authority hosts")
