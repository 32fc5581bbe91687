"""`/v1/integrations/{name}/security-events`: where a provider tells us that a grant ended."""

import re
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter
from pydantic import AfterValidator, Field
from starlette.responses import Response

from evergrant_server import audit
from evergrant_server.api.authentication import Caller
from evergrant_server.api.guards import Asking, By, With, require
from evergrant_server.api.outgoing import fetch_keys
from evergrant_server.api.parts import Parts
from evergrant_server.api.shapes import Body, Slug, Text, WholeSecret
from evergrant_server.api.transactions import committed
from evergrant_server.api.views import View
from evergrant_server.core.access import Action, Integration
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.ids import ReceiverId, new_id
from evergrant_server.core.messages import Asked
from evergrant_server.core.receivers import ACCOUNT_IS_SUB, ACCOUNT_IS_SUBJECT, Receiver, ReceiverKind
from evergrant_server.core.secret import Secret
from evergrant_server.store import Tx
from providers.events import needs_secret

router = APIRouter(tags=["security events"])

_FACT = re.compile(r"^[A-Za-z_][A-Za-z0-9_.-]{0,63}\Z")


def _fact(value: str) -> str:
    if not _FACT.match(value):
        raise ValueError("use sub, subject, or the name of a fact of the grant")
    return value


class ReceiverBody(Body):
    """`set` needs `issuer` and `jwks_uri`; the others a `secret`, which is written and never read.

    `audience` is the integration's client id unless it is given. `account_in` says where a
    connection has the account's id: the id token's `sub`, its `subject`, or a fact of its grant.
    """

    kind: ReceiverKind
    issuer: Text | None = None
    jwks_uri: Text | None = None
    audience: Annotated[tuple[Text, ...], Field(max_length=20)] = ()
    account_in: Annotated[str, AfterValidator(_fact)] | None = None
    secret: WholeSecret | None = None


class ReceiverView(View):
    """`url` is what the provider is given. `keys` counts the pinned keys of its transmitter."""

    id: str
    url: str
    kind: ReceiverKind
    issuer: str | None
    jwks_uri: str | None
    audience: tuple[str, ...]
    account_in: str
    has_secret: bool
    keys: int
    keys_at: datetime | None
    keys_problem: str | None
    created_at: datetime
    changed_at: datetime
    revision: int

    @classmethod
    def of(cls, it: Receiver, *, public_url: str, has_secret: bool) -> "ReceiverView":
        shown = it.model_dump(exclude={"tenant", "integration_id", "keys", "keys_asked_at"})
        url = f"{public_url}/v1/security-events/{it.id}"
        return cls(**shown, url=url, has_secret=has_secret, keys=len(it.keys or ()))


@router.put("/v1/integrations/{name}/security-events", status_code=200)
async def put(
    name: Slug, body: ReceiverBody, response: Response, parts: With, caller: Asking, asked: By
) -> ReceiverView:
    """Create or change the receiver of an integration. A transmitter's keys are read by a worker."""
    _check(parts, body)

    async def write(tx: Tx) -> tuple[Receiver, bool]:
        now = parts.clock.now()
        integration = await _integration(tx, caller, name)
        before = await tx.receivers.of_integration(caller.tenant, integration.id)
        if before is None:
            after = await tx.receivers.put(_new(integration, body, now), _needed(body), expected=None)
        else:
            secret = body.secret if body.kind is before.kind else _needed(body)
            after = await tx.receivers.put(_changed(before, body, now), secret, expected=before.revision)
        if after.jwks_uri is not None and after.keys is None:
            after = after.model_copy(update={"keys_asked_at": now})
            after = await tx.receivers.replace(after, expected=after.revision)
            await tx.outbox.add(fetch_keys(after, asked, now))
        await _record(tx, AuditAction.RECEIVER_PUT, integration, after, asked, now)
        return after, before is None

    after, new = await committed(parts.store, write)
    parts.relay.nudge()
    response.status_code = 201 if new else 200
    return await _view(parts, after)


@router.get("/v1/integrations/{name}/security-events")
async def shown(name: Slug, parts: With, caller: Asking) -> ReceiverView:
    """The receiver, with the URL to register at the provider. Never its secret."""
    async with parts.store.read() as tx:
        found = await _named(tx, caller, name)
    return await _view(parts, found)


@router.delete("/v1/integrations/{name}/security-events", status_code=204)
async def delete(name: Slug, parts: With, caller: Asking, asked: By) -> Response:
    """Delete it with its secret: what comes in there is not found from now on."""

    async def drop(tx: Tx) -> None:
        integration = await _integration(tx, caller, name)
        receiver = await _named(tx, caller, name)
        await tx.receivers.delete(receiver)
        now = parts.clock.now()
        await _record(tx, AuditAction.RECEIVER_DELETED, integration, receiver, asked, now)

    await committed(parts.store, drop)
    return Response(status_code=204)


def _check(parts: Parts, body: ReceiverBody) -> None:
    """Raises Failure INVALID_REQUEST naming the field."""
    if body.kind is not ReceiverKind.SET:
        given = [it for it in ("issuer", "jwks_uri", "audience") if getattr(body, it)]
        if given:
            raise Failure(Code.INVALID_REQUEST, f"{body.kind} has no {given[0]}.", field=given[0])
        return
    if body.secret is not None:
        raise Failure(Code.INVALID_REQUEST, "Tokens are verified with public keys.", field="secret")
    if body.issuer is None or body.jwks_uri is None:
        missing = "issuer" if body.issuer is None else "jwks_uri"
        raise Failure(Code.INVALID_REQUEST, f"{missing} is needed for security event tokens.", field=missing)
    try:
        parts.check_endpoint(body.jwks_uri)
    except Failure as failure:
        raise Failure(Code.INVALID_REQUEST, f"jwks_uri: {failure.detail}", field="jwks_uri") from None


def _needed(body: ReceiverBody) -> Secret | None:
    if needs_secret(body.kind) and (body.secret is None or not body.secret.reveal()):
        raise Failure(Code.INVALID_REQUEST, f"{body.kind} signs with a secret.", field="secret")
    return body.secret


def _new(integration: Integration, body: ReceiverBody, now: datetime) -> Receiver:
    blank = Receiver(
        tenant=integration.tenant,
        id=ReceiverId(new_id("rcv")),
        integration_id=integration.id,
        kind=body.kind,
        created_at=now,
        changed_at=now,
    )
    return _changed(blank, body, now)


def _changed(before: Receiver, body: ReceiverBody, now: datetime) -> Receiver:
    """Keys belong to an issuer and a place: another one's are fetched anew."""
    kept = (body.issuer, body.jwks_uri) == (before.issuer, before.jwks_uri)
    fresh = {} if kept else {"keys": None, "keys_at": None, "keys_asked_at": None, "keys_problem": None}
    usual = ACCOUNT_IS_SUB if body.kind is ReceiverKind.SET else ACCOUNT_IS_SUBJECT
    given = body.model_dump(exclude={"secret", "account_in"})
    update = {**given, "account_in": body.account_in or usual, "changed_at": now, **fresh}
    return before.model_copy(update=update)


async def _view(parts: Parts, it: Receiver) -> ReceiverView:
    async with parts.store.read() as tx:
        secret = await tx.receivers.secret(it)
    return ReceiverView.of(it, public_url=parts.settings.public_url, has_secret=secret is not None)


async def _integration(tx: Tx, caller: Caller, name: str) -> Integration:
    require(caller, Action.ADMIN, integration=name, subject=None, hidden=False)
    found = await tx.integrations.by_name(caller.tenant, name)
    if found is None:
        raise Failure(Code.NOT_FOUND)
    return found


async def _named(tx: Tx, caller: Caller, name: str) -> Receiver:
    integration = await _integration(tx, caller, name)
    found = await tx.receivers.of_integration(caller.tenant, integration.id)
    if found is None:
        raise Failure(Code.NOT_FOUND)
    return found


async def _record(
    tx: Tx, action: AuditAction, integration: Integration, it: Receiver, asked: Asked, now: datetime
) -> None:
    entry = AuditEntry(
        tenant=it.tenant,
        at=now,
        action=action,
        object=integration.id,
        asked=asked,
        detail={"integration": integration.name, "kind": it.kind.value, "receiver": it.id},
    )
    await audit.append(tx, entry)
