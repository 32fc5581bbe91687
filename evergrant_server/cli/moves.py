"""`tenants move` and what follows: take a tenant to another cell, on the hosts of both."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from evergrant_server.access.cells import moves as orders
from evergrant_server.cli.flags import Flags, settings_of
from evergrant_server.cli.machine import write_private
from evergrant_server.core.cells.moves import MoveOffer, TenantMove
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.crypto import Recipient
from evergrant_server.crypto.jose import open_sealed_to
from evergrant_server.crypto.keyring import Role
from evergrant_server.store import Store
from evergrant_server.wiring.platform import open_store


async def move(tenant: str, *, to: str, key: Path, out: Path, flags: Flags | None = None) -> None:
    """Offer a tenant to another cell: writes a file that only the owner of the key opens.

    Nothing changes before that cell's operator takes the file: python -m evergrant_server tenants receive.

    Args:
        tenant: The tenant's name.
        to: The other cell's public URL, which callers are sent to in the end.
        key: That cell's public key, as evergrant export-key writes one there.
        out: The file with the offer (mode 0600). It is good for a week, and for one move.
    """
    settings, recipient = settings_of(flags), Recipient.parse(_document(key))
    async with _store(flags) as store:
        address = to.rstrip("/")
        offered, sealed = await orders.offer(
            store, SystemClock(), Tenant(tenant), settings.public_url, address, recipient
        )
    write_private(out, sealed + "\n")
    print(f"{offered.id}\twrote {out}: on a host of {address}, with that key's private half:")
    print(f"  python -m evergrant_server tenants receive {out.name} --key PRIVATE_KEY")


async def receive(offer: Path, *, key: Path, flags: Flags | None = None) -> None:
    """Take a tenant that another cell offers. A running worker copies it, and takes over by itself.

    Follow it with: python -m evergrant_server tenants moves. Until the tenant is served here, undo ends it.

    Args:
        offer: The file of tenants move.
        key: The private key for whose public half it was sealed.
    """
    opened = open_sealed_to(_text(offer), _text(key))
    try:
        offered = MoveOffer.model_validate_json(opened.reveal())
    except ValidationError:
        raise Failure(ErrorCode.INVALID_REQUEST, f"{offer} holds no offer of a tenant.") from None
    settings = settings_of(flags)
    async with _store(flags) as store:
        taken = await orders.receive(store, SystemClock(), offered, settings.public_url)
    print(f"{taken.id}\t{taken.tenant} is copied from {taken.peer}")


async def moves(*, flags: Flags | None = None) -> None:
    """Print each move from or to this cell: how far it is, how long refreshes waited, what is wrong."""
    async with _store(flags) as store, store.read() as tx:
        found = await tx.tenant_moves.page()
    for one in found:
        print(_line(one))


async def undo(tenant: str, *, flags: Flags | None = None) -> None:
    """Undo a move: the tenant stays where it was. Possible until it is served by the other cell.

    Once the other cell has begun to take over, undo it there: only that cell knows that it won't serve it.

    Args:
        tenant: The tenant's name.
    """
    async with _store(flags) as store:
        print(_line(await orders.order(store, SystemClock(), Tenant(tenant), undo=True)))


async def forget(tenant: str, *, confirm: str, flags: Flags | None = None) -> None:
    """Delete for good what a tenant has left behind that lives in another cell now: its keys first.

    Nothing is revoked at providers. The audit log stays, and callers are still told the new address.

    Args:
        tenant: The tenant's name.
        confirm: The tenant's name once more.
    """
    if confirm != tenant:
        why = f"--confirm must repeat the tenant's name: --confirm {tenant}"
        raise Failure(ErrorCode.INVALID_REQUEST, why, field="confirm")
    async with _store(flags) as store:
        print(_line(await orders.order(store, SystemClock(), Tenant(tenant), undo=False)))


def _line(move: TenantMove) -> str:
    parts = [move.id, move.tenant, "to" if move.side == "source" else "from", move.peer, move.state]
    if move.paused_at is not None and move.closed_at is not None:
        parts.append(f"refreshes paused for {(move.closed_at - move.paused_at).total_seconds():.1f} s")
    if move.root:
        parts.append(f"{sum(move.counts.values())} rows, root {move.root}")
    return "\t".join([*parts, move.problem]).rstrip()


def _document(path: Path) -> dict[str, Any] | str:
    """A public key as a JWK, or the text of a PEM file."""
    text = _text(path)
    try:
        parsed = json.loads(text)
    except ValueError:
        return text
    return cast("dict[str, Any]", parsed) if isinstance(parsed, dict) else text


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it isn't text"
        raise Failure(ErrorCode.INVALID_REQUEST, f"{path} can't be read: {reason}") from None


@asynccontextmanager
async def _store(flags: Flags | None) -> AsyncIterator[Store]:
    async with open_store(settings_of(flags), Role.OPERATOR) as (store, _):
        yield store
