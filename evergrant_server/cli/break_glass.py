"""`keys break-glass`: a session with the role tenant_admin, for when people can't log in."""

import sys
from pathlib import Path

from evergrant_server.api.people.sessions import make_break_glass_session
from evergrant_server.cli.app import Flags, settings_of
from evergrant_server.cli.private_files import write_private
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.ids import Tenant
from evergrant_server.crypto.keyring import KeyRing, Role
from evergrant_server.store import Store


async def break_glass(*, who: str, reason: str, out: Path | None = None, flags: Flags | None = None) -> None:
    """Make a session that administers the tenant for one hour, and print its token, once.

    It is an alarm: the audit log, the log and webhooks name who made it and why.

    Args:
        who: The person who uses it.
        reason: Why, such as the number of an incident.
        out: Write the token to this file (mode 0600) instead of printing it.
    """
    settings = settings_of(flags)
    clock = SystemClock()
    ring = KeyRing.open(settings.key_path, Role.OPERATOR)
    store = await Store.open(settings.database_url, ring, clock)
    try:
        token = await make_break_glass_session(store, clock, Tenant(settings.tenant), who, reason)
    finally:
        await store.close()
    if out is not None:
        write_private(out, token + "\n")
        return
    print(token)
    print("shown once, good for an hour; as EVERGRANT_API_KEY it works with every command", file=sys.stderr)
