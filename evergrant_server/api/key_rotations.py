"""`/v1/keys`: what the tenant's keys are, and rotations of them (`workflows.keys`)."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.responses import Response

from evergrant_server.access.approvals import dangerous, use_approval
from evergrant_server.api.http.call import AdminCall, AdminCommand, ApiCall, AuditorCall, CommandResponse
from evergrant_server.api.http.models import Body, Page, View
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, KeyRotationId, new_id
from evergrant_server.core.key_rotation import RotationCommand, RotationKind, RotationStep
from evergrant_server.core.messages.keys import KeyRotationStart, PauseKeyRotation
from evergrant_server.core.messages.names import key_rotation_workflow_id
from evergrant_server.core.outbox import key_rotation_message, pause_key_rotation_message
from evergrant_server.crypto import KeyPurpose
from evergrant_server.problems import invalid_request
from evergrant_server.store import Transaction
from evergrant_server.store.rotation.requests import add_request, last_request

router = APIRouter(tags=["keys"])

# those of roots are begun on the host
TenantsKind = Literal[RotationKind.TENANT, RotationKind.CONNECTION]
_KINDS: tuple[TenantsKind, ...] = (RotationKind.TENANT, RotationKind.CONNECTION)
_CONNECTION = Annotated[ConnectionId | None, Query(max_length=64)]


class TenantKeyView(View):
    """The tenant's key of one purpose. `replaced` older ones aren't destroyed yet, and `left` keys and values
    still stand under them; likewise `replaced_connection_keys`."""

    purpose: KeyPurpose
    key_id: str | None
    made_at: datetime | None
    replaced: int
    left: int
    connection_keys: int
    replaced_connection_keys: int


class TenantKeysView(View):
    keys: list[TenantKeyView]


class KeyRotationName(Body):
    """Whose keys: the `tenant`'s own, or those of its connections, or of one."""

    kind: TenantsKind
    connection_id: ConnectionId | None = None


class KeyRotationBody(KeyRotationName):
    """Whose keys, and how. `purposes`: none is all.

    `rotate` makes new keys, moves what older ones wrap or seal to them, and destroys those. `rewrap` moves
    without new keys, and `retire` destroys what was replaced before, once nothing needs it.
    """

    command: RotationCommand = RotationCommand.ROTATE
    purposes: tuple[KeyPurpose, ...] = ()


class KeyRotationView(View):
    """How far a rotation is. `moved` of `total` keys and values; `kept` older keys may still be needed by a
    provider's late reply in a worker's journal; `broken` values are opened by no key."""

    rotation_id: KeyRotationId
    kind: TenantsKind
    command: RotationCommand
    purposes: tuple[str, ...]
    connection_id: str | None
    begun_at: datetime
    by: str
    paused: bool
    done: bool
    step: RotationStep | None
    total: int
    replaced: int
    moved: int
    left: int
    destroyed: int
    kept: int
    broken: int


@router.get("/v1/keys")
async def get_tenant_keys(call: AuditorCall) -> TenantKeysView:
    """The tenant's keys, of each purpose: their age, and what stands under those that were replaced."""
    async with call.api.store.read() as tx:
        counts = {purpose: await tx.tenant_keys.counts(call.tenant, purpose) for purpose in KeyPurpose}
    return TenantKeysView(
        keys=[TenantKeyView(purpose=purpose, **of._asdict()) for purpose, of in counts.items()]
    )


@router.post("/v1/keys/rotations", status_code=202, response_model=KeyRotationView)
@dangerous("always: keys are replaced, and older ones destroyed")
async def rotate_keys(body: KeyRotationBody, call: AdminCommand) -> Response:
    """Have a worker rotate keys, while everything else goes on. One rotation of a kind runs at a time."""
    _require_target(body)
    last = await _require_none_running(call, body)

    async def begin(tx: Transaction) -> CommandResponse:
        if (
            body.connection_id is not None
            and await tx.connections.get(call.tenant, body.connection_id) is None
        ):
            raise Failure(ErrorCode.NOT_FOUND)
        approved = await use_approval(tx, call, body, {"keys": await _current_keys(tx, call, body.purposes)})
        start = KeyRotationStart(
            tenant=call.tenant,
            rotation_id=KeyRotationId(new_id("rot")),
            kind=body.kind,
            command=body.command,
            purposes=tuple(purpose.value for purpose in body.purposes),
            connection_id=body.connection_id,
            begun_at=call.now,
            context=call.context,
        )
        await add_request(tx, key_rotation_message(start, call.now), last)
        detail = {"rotation": start.rotation_id, "kind": body.kind, "command": body.command, **approved}
        object_id = body.connection_id or call.tenant
        await call.record(tx, AuditAction.KEY_ROTATION_REQUESTED, object_id, **detail)
        return CommandResponse.of(rotation_view(start), 202)

    response = await call.run(body, begin)
    call.api.relay.notify()
    return response


@router.get("/v1/keys/rotations")
async def list_key_rotations(call: AuditorCall, connection: _CONNECTION = None) -> Page[KeyRotationView]:
    """How far the newest rotation of each kind is, also of one that is done; or that of one connection."""
    kinds = _KINDS if connection is None else (RotationKind.CONNECTION,)
    newest = await asyncio.gather(*(_newest(call, kind, connection) for kind in kinds))
    return Page(items=[rotation_view(start) for start in newest if start is not None])


@router.post("/v1/keys/rotations/pause")
async def pause_key_rotation(body: KeyRotationName, call: AdminCall) -> KeyRotationView:
    """Have a rotation pause at the end of the page that it moves. Everything opens meanwhile."""
    return await _tell(call, body.kind, body.connection_id, paused=True)


@router.post("/v1/keys/rotations/resume")
async def resume_key_rotation(body: KeyRotationName, call: AdminCall) -> KeyRotationView:
    """Have a paused rotation go on."""
    return await _tell(call, body.kind, body.connection_id, paused=False)


async def _tell(
    call: ApiCall, kind: TenantsKind, connection_id: str | None, *, paused: bool
) -> KeyRotationView:
    start = await _newest(call, kind, connection_id)
    if start is None or start.progress.done:
        raise Failure(ErrorCode.NOT_FOUND, "No such rotation is running.")

    async def write(tx: Transaction) -> None:
        signal = PauseKeyRotation(paused=paused, context=call.context)
        target = key_rotation_workflow_id(call.tenant, kind, connection_id)
        await tx.outbox.add(pause_key_rotation_message(call.tenant, target, signal, call.now))
        detail = {"rotation": start.rotation_id, "paused": paused}
        await call.record(tx, AuditAction.KEY_ROTATION_PAUSED, connection_id or call.tenant, **detail)

    await call.write(write)
    call.api.relay.notify()
    return rotation_view(start.__replace__(paused=paused))


async def _newest(call: ApiCall, kind: TenantsKind, connection_id: str | None) -> KeyRotationStart | None:
    """Raises Failure TEMPORAL_UNAVAILABLE."""
    workflow = key_rotation_workflow_id(call.tenant, kind, connection_id)
    return await call.api.link.describe_key_rotation(workflow)


async def _require_none_running(call: ApiCall, body: KeyRotationBody) -> int:
    """The number of the last request: who finds a later one knows that it has begun since.

    Raises Failure ALREADY_EXISTS. While Temporal is away, a second rotation joins one that runs.
    """
    target = key_rotation_workflow_id(call.tenant, body.kind, body.connection_id)
    async with call.api.store.read() as tx:
        last = await last_request(tx, target)
    try:
        start = await _newest(call, body.kind, body.connection_id)
    except Failure:
        return last
    if start is not None and not start.progress.done:
        why = f"The rotation {start.rotation_id} runs already: evergrant keys rotations says how far."
        raise Failure(ErrorCode.ALREADY_EXISTS, why)
    return last


async def _current_keys(
    tx: Transaction, call: ApiCall, purposes: Sequence[KeyPurpose]
) -> dict[str, str | None]:
    """The tenant's current keys of these purposes, or of all, by purpose: what an approval is for."""
    return {
        purpose.value: (await tx.tenant_keys.counts(call.tenant, purpose)).key_id
        for purpose in purposes or tuple(KeyPurpose)
    }


def _require_target(body: KeyRotationBody) -> None:
    if body.connection_id is not None and body.kind is not RotationKind.CONNECTION:
        raise invalid_request("connection_id", "A connection is named for the kind `connection` alone.")


def rotation_view(start: KeyRotationStart) -> KeyRotationView:
    """A rotation as its run describes it."""
    shown: dict[str, Any] = {name: getattr(start.progress, name) for name in _OF_PROGRESS}
    return KeyRotationView.of(start, by=start.context.by, **shown)


_OF_PROGRESS = ("done", "step", "total", "replaced", "moved", "left", "destroyed", "kept", "broken")
