"""`/v1/integrations/{name}/security-events`: the receiver of a provider's security events."""

import re
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter
from pydantic import AfterValidator, Field
from starlette.responses import Response

from evergrant_server.access.approvals import dangerous, fingerprint, use_approval
from evergrant_server.access.context import ApiContext
from evergrant_server.api.http.call import ApiCall, Call, Change
from evergrant_server.api.http.models import Body, Slug, StorableSecret, Text, View
from evergrant_server.core.access import READING_ACTIONS, Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.ids import ReceiverId, new_id
from evergrant_server.core.integrations import Integration
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.integrations import FetchReceiverKeys
from evergrant_server.core.messages.jobs import FETCH_RECEIVER_KEYS
from evergrant_server.core.outbox import job_message
from evergrant_server.core.provider_events import ACCOUNT_IS_SUB, ACCOUNT_IS_SUBJECT, Receiver, ReceiverKind
from evergrant_server.core.secret import Secret
from evergrant_server.policy import Target
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction

router = APIRouter(tags=["security events"])

_SHORTEST_SECRET = 16  # characters; the secrets that providers issue have 22 and more
_SECRET_TOO_SHORT = (
    f"The signing secret needs at least {_SHORTEST_SECRET} characters: one signed event suffices to guess a "
    "shorter one, and a forged event ends connections. Take the provider's, or 32 random characters."
)

_MEMBER_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_.-]{0,63}\Z")


def _account_member(value: str) -> str:
    if not _MEMBER_NAME.match(value):
        raise ValueError("use sub, subject, or the name of a member of the grant's metadata")
    return value


class EventReceiverBody(Body):
    """`set` needs `issuer` and `jwks_uri`; the other kinds need a `secret`, which is write-only.

    `audience` defaults to the integration's client id. `account_in` says which member of a connection
    holds the account's id: `sub` of the id token, its `subject`, or a member of its `metadata`.
    """

    kind: ReceiverKind
    issuer: Text | None = None
    jwks_uri: Text | None = None
    audience: Annotated[tuple[Text, ...], Field(max_length=20)] = ()
    account_in: Annotated[str, AfterValidator(_account_member)] | None = None
    secret: StorableSecret | None = None


class EventReceiverView(View):
    """`url` is to be registered at the provider. `keys` counts the pinned keys of its transmitter."""

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


@router.put("/v1/integrations/{name}/security-events", status_code=200)
@dangerous("a new receiver, and each change: of who is believed that a grant has ended")
async def put_event_receiver(
    name: Slug, body: EventReceiverBody, response: Response, call: Change
) -> EventReceiverView:
    """Create or change the receiver of an integration. A worker fetches the transmitter's keys."""
    _check_body(call.api, body)

    async def write(tx: Transaction) -> tuple[EventReceiverView, bool]:
        now = call.now
        integration, before = await _find(tx, call, name, *call.changing(body.secret))
        approved: dict[str, str] = {}
        if before is None or await _says_otherwise(tx, call, before, body):
            facts = {"integration": integration.id, "secret": fingerprint(call, body.secret)}
            approved = await use_approval(tx, call, body.__replace__(secret=None), facts)
        if before is None:
            blank = Receiver(
                tenant=integration.tenant,
                id=ReceiverId(new_id("rcv")),
                integration_id=integration.id,
                kind=body.kind,
                created_at=now,
                changed_at=now,
            )
            secret = _required_secret(body)
            after = await tx.receivers.put(_with_body(blank, body, now), secret, expected=None)
        else:
            secret = body.secret if body.kind is before.kind else _required_secret(body)
            after = await tx.receivers.put(_with_body(before, body, now), secret, expected=before.revision)
        if after.jwks_uri is not None and after.keys is None:
            after = await request_keys(tx, after, call.context, now)
        await _record(tx, call, AuditAction.RECEIVER_PUT, integration, after, approved)
        return await _view(tx, call.api, after), before is None

    view, new = await call.write(write)
    response.status_code = 201 if new else 200
    return view


@router.get("/v1/integrations/{name}/security-events")
async def get_event_receiver(name: Slug, call: Call) -> EventReceiverView:
    """The receiver, with the URL to register at the provider. Never its secret."""
    async with call.api.store.read() as tx:
        _, receiver = await _find(tx, call, name, *READING_ACTIONS)
        return await _view(tx, call.api, require_found(receiver))


@router.delete("/v1/integrations/{name}/security-events", status_code=204)
@dangerous("always: what the provider reports is heard no more")
async def delete_event_receiver(name: Slug, call: Call) -> Response:
    """Delete the receiver with its secret. Its URL then answers 404."""

    async def drop(tx: Transaction) -> None:
        integration, stored = await _find(tx, call, name, Action.ADMIN)
        receiver = require_found(stored)
        approved = await use_approval(tx, call, None, {"receiver": receiver.id})
        await tx.receivers.delete(receiver)
        await _record(tx, call, AuditAction.RECEIVER_DELETED, integration, receiver, approved)

    await call.write(drop)
    return Response(status_code=204)


async def request_keys(
    tx: Transaction, receiver: Receiver, context: RequestContext, now: datetime
) -> Receiver:
    """Have a worker fetch the public keys of the receiver's transmitter."""
    requested = receiver.__replace__(keys_requested_at=now)
    after = await tx.receivers.replace(requested, expected=receiver.revision)
    fetch = FetchReceiverKeys(tenant=after.tenant, receiver_id=after.id, context=context)
    await tx.outbox.add(job_message(after.tenant, FETCH_RECEIVER_KEYS, fetch, now))
    return after


def _check_body(api: ApiContext, body: EventReceiverBody) -> None:
    """Raises Failure INVALID_REQUEST naming the field."""
    if body.kind is not ReceiverKind.SET:
        unused = [field for field in ("issuer", "jwks_uri", "audience") if getattr(body, field)]
        if unused:
            raise invalid_request(unused[0], f"{body.kind} has no {unused[0]}.")
        if body.secret is not None and len(body.secret.reveal()) < _SHORTEST_SECRET:
            raise invalid_request("secret", _SECRET_TOO_SHORT)
        return
    if body.secret is not None:
        raise invalid_request("secret", "Security event tokens are verified with public keys.")
    if body.issuer is None or body.jwks_uri is None:
        missing = "issuer" if body.issuer is None else "jwks_uri"
        raise invalid_request(missing, f"{missing} is needed for security event tokens.")
    api.require_endpoint("jwks_uri", body.jwks_uri)


def _required_secret(body: EventReceiverBody) -> Secret | None:
    if body.kind is not ReceiverKind.SET and body.secret is None:
        raise invalid_request("secret", f"{body.kind} needs a signing secret.")
    return body.secret


def _with_body(before: Receiver, body: EventReceiverBody, now: datetime) -> Receiver:
    """The receiver with the body's members. Another issuer or key URL drops the pinned keys."""
    kept = (body.issuer, body.jwks_uri) == (before.issuer, before.jwks_uri)
    usual = ACCOUNT_IS_SUB if body.kind is ReceiverKind.SET else ACCOUNT_IS_SUBJECT
    members = body.model_dump(exclude={"secret", "account_in"})
    after = before.__replace__(**members, account_in=body.account_in or usual, changed_at=now)
    return (
        after
        if kept
        else after.__replace__(keys=None, keys_at=None, keys_requested_at=None, keys_problem=None)
    )


async def _says_otherwise(tx: Transaction, call: ApiCall, before: Receiver, body: EventReceiverBody) -> bool:
    """Whether the body changes the receiver, or its secret."""
    another_secret = body.secret is not None and body.secret != await tx.receivers.secret(before)
    if call.dry_run is not None:
        call.dry_run.note_secrets({"secret": another_secret})
    return another_secret or _with_body(before, body, before.changed_at) != before


async def _view(tx: Transaction, api: ApiContext, receiver: Receiver) -> EventReceiverView:
    secret = await tx.receivers.secret(receiver)
    url = f"{api.settings.public_url}/v1/security-events/{receiver.id}"
    return EventReceiverView.of(
        receiver, url=url, has_secret=secret is not None, keys=len(receiver.keys or ())
    )


async def _find(
    tx: Transaction, call: ApiCall, name: str, *actions: Action
) -> tuple[Integration, Receiver | None]:
    """The integration, for which the caller has one of `actions`, and its receiver.

    Raises Failure NOT_PERMITTED, NOT_FOUND.
    """
    named = await tx.integrations.by_name(call.tenant, name)
    call.require_permit(*actions, of=Target(name, None if named is None else named.provider))
    integration = require_found(named)
    return integration, await tx.receivers.of_integration(call.tenant, integration.id)


async def _record(
    tx: Transaction,
    call: ApiCall,
    action: AuditAction,
    integration: Integration,
    receiver: Receiver,
    approved: dict[str, str],
) -> None:
    detail = {"integration": integration.name, "kind": receiver.kind.value, "receiver": receiver.id}
    await call.record(tx, action, integration.id, **detail, **approved)
