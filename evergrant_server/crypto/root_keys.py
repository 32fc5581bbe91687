"""Root keys as rows: what a key service wraps, and which of them seals.

The row of a root that lies in the key file itself wraps nothing. Rows of the purposes `authority` and
`gateway` wrap no root but what the roles sign and derive with.
"""

import secrets
from datetime import datetime
from enum import StrEnum

from evergrant_server.core.ids import Tenant
from evergrant_server.core.model import CheckedModel
from evergrant_server.crypto.bundle import gateway_bundle
from evergrant_server.crypto.key_services.bound import BoundKeyService
from evergrant_server.crypto.key_services.port import Context, ServicePurpose
from evergrant_server.crypto.keyfile import KeyFile, bundle_bytes
from evergrant_server.crypto.keyring import PURPOSES_OF_ROLE, Role

INSTALLATION = Tenant("")  # whose the rows are that no tenant has
BUNDLE_PURPOSES = (ServicePurpose.AUTHORITY, ServicePurpose.GATEWAY)  # what is wrapped is no root
BUNDLE_OF_ROLE = {role: ServicePurpose.AUTHORITY for role in Role} | {Role.GATEWAY: ServicePurpose.GATEWAY}


def service_purposes(role: Role) -> frozenset[ServicePurpose]:
    """The purposes whose keys of the service a process of this role needs."""
    return frozenset({ServicePurpose(purpose) for purpose in PURPOSES_OF_ROLE[role]} | {BUNDLE_OF_ROLE[role]})


class RootState(StrEnum):
    """Where a root is in its life. It opens from the first to the last but one."""

    ANNOUNCED = "announced"  # processes unwrap it, and none seals with it yet
    CURRENT = "current"  # the one of its purpose that seals
    OPEN = "open"  # it only opens
    RETIRED = "retired"  # nothing stands under it; what was wrapped is destroyed


class RootKey(CheckedModel):
    """A root key, without the key. `service` is the name of the service's key that wraps it."""

    tenant: Tenant = INSTALLATION
    id: str
    purpose: ServicePurpose
    service: str
    state: RootState
    created_at: datetime
    current_at: datetime | None = None
    retired_at: datetime | None = None
    revision: int = 1


async def first_roots(
    service: BoundKeyService, file: KeyFile, now: datetime, *, lie_in_file: bool
) -> list[tuple[RootKey, bytes | None]]:
    """The first rows of an installation, each with what the service has wrapped.

    That is the roots of the file, unless they go on lying in it, and what the roles sign and derive with.
    Raises KeyServiceFailure.
    """
    rows: list[tuple[RootKey, bytes | None]] = []
    for name, roots in sorted(file.purposes.items()):
        purpose = ServicePurpose(name)
        for id, key in sorted(roots.keys.items()):
            state = RootState.CURRENT if id == roots.current else RootState.OPEN
            root = RootKey(
                id=id,
                purpose=purpose,
                service=f"file:{purpose}" if lie_in_file else service.key_name(purpose),
                state=state,
                created_at=now,
                current_at=now if state is RootState.CURRENT else None,
            )
            wrapped = None if lie_in_file else await service.wrap(purpose, key.reveal(), Context(id))
            rows.append((root, wrapped))
    bundles = {ServicePurpose.AUTHORITY: file, ServicePurpose.GATEWAY: gateway_bundle(file)}
    for purpose, bundle in bundles.items():
        rows.append(await bundle_root(service, purpose, bundle, now))
    return rows


async def bundle_root(
    service: BoundKeyService, purpose: ServicePurpose, bundle: KeyFile, now: datetime
) -> tuple[RootKey, bytes]:
    """The row of what roles sign and derive with, and that as the service has wrapped it.

    Raises KeyServiceFailure.
    """
    id, value = f"{purpose}_{secrets.token_hex(12)}", bundle_bytes(bundle)
    root, wrapped = await announced_root(service, purpose, id, value, now)
    return root.__replace__(state=RootState.CURRENT, current_at=now), wrapped


async def announced_root(
    service: BoundKeyService, purpose: ServicePurpose, id: str, value: bytes, now: datetime
) -> tuple[RootKey, bytes]:
    """The row of a new root, or of a bundle, and its value as the service has wrapped it.

    Raises KeyServiceFailure.
    """
    root = RootKey(
        id=id,
        purpose=purpose,
        service=service.key_name(purpose),
        state=RootState.ANNOUNCED,
        created_at=now,
    )
    return root, await service.wrap(purpose, value, Context(id))
