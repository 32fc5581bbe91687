"""Rotations of keys run page by page, as the workflow has them run, without Temporal."""

from typing import Any

from sqlalchemy import select
from temporalio.testing import ActivityEnvironment

from activities.keys.rotation import KeyRotationActivities
from activities.keys.tenants import ConnectionRotation, TenantRotation
from evergrant_server.core.ids import KeyRotationId, new_id
from evergrant_server.core.key_rotation import RotationCommand, RotationKind, RotationStep
from evergrant_server.core.messages.base import Provenance, RequestContext
from evergrant_server.core.messages.keys import KeyRotationCall, KeyRotationProgress
from evergrant_server.crypto import ROOT_PURPOSES, KeyPurpose
from evergrant_server.store import NO_CONNECTION, Store
from evergrant_server.store.database.columns import (
    table_of,
)
from evergrant_server.store.keys import KeyRow
from tests.conformance.store.samples import ACME
from tests.fakes.clock import SetClock
from tests.fakes.databases import NOW

PURPOSES = ROOT_PURPOSES
KINDS = (RotationKind.TENANT, RotationKind.CONNECTION)


def a_rotation(kind: RotationKind, **changes: Any) -> KeyRotationCall:
    values: dict[str, Any] = {
        "tenant": ACME,
        "rotation_id": KeyRotationId(new_id("rot")),
        "kind": kind,
        "command": RotationCommand.ROTATE,
        "purposes": tuple(purpose.value for purpose in PURPOSES),
        "begun_at": NOW,
        "context": RequestContext(by="app:admin"),
        "provenance": Provenance(workflow_id="w", run_id="r", event_id=1),
        **changes,
    }
    return KeyRotationCall(**values)


async def one_page(store: Store, call: KeyRotationCall) -> KeyRotationProgress:
    kind = TenantRotation if call.kind is RotationKind.TENANT else ConnectionRotation
    return await kind(store, call, page_rows=4).advance(call.progress.__replace__(wait_s=0))


async def rotated(
    store: Store, call: KeyRotationCall, until: RotationStep | None = None, *, most: int = 500
) -> KeyRotationProgress:
    """To its end, to the beginning of a step, or until a key has to be kept."""
    progress = call.progress
    for _ in range(most):
        if progress.done or progress.step is until is not None or progress.kept:
            return progress
        progress = await one_page(store, call.__replace__(progress=progress))
    raise AssertionError(f"it doesn't end: {progress}")


async def advanced(store: Store, call: KeyRotationCall) -> KeyRotationProgress:
    """As a worker does it."""
    activities = KeyRotationActivities(store, SetClock(NOW), None, page_rows=4)
    return await ActivityEnvironment().run(activities.advance_key_rotation, call)


async def key_rows(store: Store, **equal: Any) -> list[dict[str, Any]]:
    async with store.read() as tx:
        rows = await tx.connection.execute(select(table_of(KeyRow)).filter_by(**equal))
        return [dict(row) for row in rows.mappings()]


async def current_id(store: Store, purpose: KeyPurpose, connection_id: str = NO_CONNECTION) -> str:
    (row,) = await key_rows(
        store, tenant=ACME, purpose=purpose.value, connection_id=connection_id, retired_at=None
    )
    return row["id"]
