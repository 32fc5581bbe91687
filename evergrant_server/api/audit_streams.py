"""`/v1/audit/streams`: where the tenant's audit records are sent, and how far each stream is. For admins.

Doesn't own sending (a worker's) nor what waits (`audit.streams.cursors`).
"""

import re
import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter
from pydantic import AfterValidator, Field
from starlette.responses import Response

from evergrant_server.access.approvals import dangerous, fingerprint, use_approval
from evergrant_server.api.http.call import (
    AdminCall,
    AdminChange,
    AdminCommand,
    ApiCall,
    AuditorCall,
    CommandResponse,
)
from evergrant_server.api.http.models import (
    Body,
    Page,
    PageCursor,
    PageLimit,
    Slug,
    StorableSecret,
    View,
    absolute_url,
)
from evergrant_server.audit.streams import cursors
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.audit_streams.state import StreamState
from evergrant_server.core.audit_streams.stream import AuditStream, StreamBegin, StreamFormat, StreamProblem
from evergrant_server.core.ids import StreamId, new_id
from evergrant_server.core.secret import Secret
from evergrant_server.core.webhook_signatures import SECRET_BYTES, new_signing_secret
from evergrant_server.core.webhooks import masked_url
from evergrant_server.policy import Target
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction

router = APIRouter(tags=["audit"])

MAX_STREAMS = 5  # of a tenant: each is sent every record
_MOST_HEADERS, _LONGEST_VALUE = 10, 4_000
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")  # a token, RFC 9110 section 5.6.2
_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
# what the request itself says; and the signature
_OURS = frozenset(
    {
        *("connection", "content-length", "content-type", "host", "te", "transfer-encoding", "upgrade"),
        *("webhook-id", "webhook-signature", "webhook-timestamp"),
    }
)


def _headers(headers: dict[str, Secret] | None) -> dict[str, Secret] | None:
    for name, value in (headers or {}).items():
        if not _NAME.fullmatch(name):
            raise ValueError("has a name that no header can have")
        if name.lower() in _OURS:
            raise ValueError("names a header that Evergrant sets itself")
        if len(value.reveal()) > _LONGEST_VALUE or not _VALUE.fullmatch(value.reveal()):
            raise ValueError(f"has a value that isn't visible ASCII, or is longer than {_LONGEST_VALUE}")
    return headers


class AuditStreamBody(Body):
    """A receiver. `headers` are sent with each batch, such as `Authorization`; absent, they stay as they are.
    `begin` counts when the stream is created: behind all records that are there, or at the oldest one."""

    # the egress policy checks its host
    url: Annotated[str, Field(max_length=2000), AfterValidator(absolute_url)]
    format: StreamFormat = StreamFormat.CLOUDEVENTS
    headers: Annotated[
        dict[str, StorableSecret] | None, Field(max_length=_MOST_HEADERS), AfterValidator(_headers)
    ] = None
    begin: StreamBegin = StreamBegin.NOW
    disabled: bool = False


class AuditStreamView(View):
    """`unsent` counts the records that wait; `failures` consecutive batches that weren't taken, of which
    `problem` says why; `paused_until` is when the next one is sent. `sent` counts records."""

    id: str
    name: str
    url: str
    format: StreamFormat
    header_names: tuple[str, ...]
    disabled: bool
    unsent: int
    sent: int
    sent_at: datetime | None
    failures: int
    failing_since: datetime | None
    paused_until: datetime | None
    problem: StreamProblem | None
    response_status: int | None
    secret_changed_at: datetime
    created_at: datetime
    changed_at: datetime
    revision: int


class AuditStreamSecretView(AuditStreamView):
    """`secret` is set only in the response that created it."""

    secret: str | None


@router.put("/v1/audit/streams/{name}")
@dangerous("a new stream, and each change: of where audit records go, as what, or whether any do")
async def put_audit_stream(
    name: Slug, body: AuditStreamBody, response: Response, call: AdminChange
) -> AuditStreamSecretView:
    """Create or change a stream of the audit log. Only the response that creates it contains the secret that
    signs batches (Standard Webhooks).

    What a changed stream hasn't sent yet is sent at once. The URL's query and the headers are sealed: answers
    show `***` in place of the query, and a request with that URL leaves it as it is.
    """
    call.api.require_endpoint("url", body.url)  # names are resolved when it is sent to
    call.require_change_of_url(body.url)
    call.require_permit(*call.changing(body.headers), of=Target())

    async def write(tx: Transaction) -> tuple[AuditStreamView, str | None]:
        before = await tx.audit_streams.by_name_unchecked(call.tenant, name)
        approved: dict[str, str] = {}
        if before is None or await _changes(tx, call, before, body):
            approved = await use_approval(tx, call, *_to_approve(call, before, body))
        if before is None:
            secret = new_signing_secret(secrets.token_bytes(SECRET_BYTES))
            after, shown = await _add(tx, call, name, body, secret), secret.reveal()
        else:
            after, shown = await _change(tx, call, before, body), None
        detail = {
            "stream": name,
            "origin": _origin(after.url),
            "format": after.format.value,
            "headers": list(after.header_names),
            "disabled": after.disabled,
        }
        await call.record(tx, AuditAction.STREAM_PUT, after.id, **detail, **approved)
        return await _view(tx, after), shown

    after, shown = await call.write(write)
    response.status_code = 200 if shown is None else 201
    return AuditStreamSecretView.of(after, secret=None if call.dry_run else shown)


def _to_approve(
    call: ApiCall, before: AuditStream | None, body: AuditStreamBody
) -> tuple[AuditStreamBody, dict[str, object]]:
    """The body without secrets, and what stands for them."""
    shown_url, _ = masked_url(body.url)
    headers = None if body.headers is None else _as_secret(body.headers)
    facts = {
        "stream": before and before.id,
        "url": fingerprint(call, body.url),
        "headers": fingerprint(call, headers),
    }
    return body.__replace__(url=shown_url, headers=None), facts


async def _changes(tx: Transaction, call: ApiCall, before: AuditStream, body: AuditStreamBody) -> bool:
    """Whether the body says anything else than what is stored."""
    access = await tx.audit_streams.access(before)
    another_url = body.url != before.url and Secret(body.url) != access.url
    other_headers = body.headers is not None and _as_secret(body.headers) != _as_secret(access.headers)
    if call.dry_run is not None:
        call.dry_run.note_secrets({"url": another_url, "headers": other_headers})
    same_rest = (body.format, body.disabled) == (before.format, before.disabled)
    return another_url or other_headers or not same_rest


async def _add(
    tx: Transaction, call: ApiCall, name: str, body: AuditStreamBody, secret: Secret
) -> AuditStream:
    await tx.take_turns(f"audit streams:{call.tenant}")
    if len(await tx.audit_streams.page(call.tenant, limit=MAX_STREAMS)) == MAX_STREAMS:
        raise invalid_request("name", f"A tenant has {MAX_STREAMS} streams at most: delete one first.")
    now = call.now
    stream = AuditStream(
        tenant=call.tenant,
        id=StreamId(new_id("stm")),
        name=name,
        url=body.url,
        format=body.format,
        disabled=body.disabled,
        secret_changed_at=now,
        created_at=now,
        changed_at=now,
    )
    state = StreamState(tenant=call.tenant, id=stream.id)
    added = await tx.audit_streams.add(stream, secret, body.headers or {})
    await tx.stream_states.add(state)
    if body.begin is StreamBegin.NOW:
        await cursors.begin_at_end(tx, state)
    return added


async def _change(tx: Transaction, call: ApiCall, before: AuditStream, body: AuditStreamBody) -> AuditStream:
    """Write the body's members. A pause ends, and who sends it now starts over with where it goes."""
    whole = (await tx.audit_streams.access(before)).url.reveal()
    changed = before.__replace__(format=body.format, disabled=body.disabled, changed_at=call.now)
    url = None if body.url in (before.url, whole) else body.url
    after = await tx.audit_streams.change(changed, url=url, headers=body.headers, expected=before.revision)
    state = await tx.stream_states.get(call.tenant, before.id)
    if state is not None:
        await tx.stream_states.replace(state.restarted(), expected=state.revision)
    return after


@router.get("/v1/audit/streams")
async def list_audit_streams(
    call: AuditorCall, limit: PageLimit = 50, cursor: PageCursor = None
) -> Page[AuditStreamView]:
    """All streams of the tenant's audit log, sorted by name."""
    listing = call.listing("audit-streams", limit, cursor)
    async with call.api.store.read() as tx:
        rows = await tx.audit_streams.page(call.tenant, listing.after, listing.most)
        views = [await _view(tx, stream) for stream in rows]
    return listing.page(views, rows, lambda stream: stream.name)


@router.get("/v1/audit/streams/{name}")
async def get_audit_stream(name: Slug, call: AuditorCall) -> AuditStreamView:
    """A stream and how far it is. Never its secrets."""
    async with call.api.store.read() as tx:
        return await _view(tx, require_found(await tx.audit_streams.by_name(call.tenant, name)))


@router.delete("/v1/audit/streams/{name}", status_code=204)
@dangerous("always: it silences what watches")
async def delete_audit_stream(name: Slug, call: AdminCall) -> Response:
    """Delete the stream with its secrets, and forget how far it was. Nothing is sent from then on."""

    async def drop(tx: Transaction) -> None:
        stream = require_found(await tx.audit_streams.by_name_unchecked(call.tenant, name))
        approved = await use_approval(tx, call, None, {"stream": stream.id})
        await tx.audit_streams.delete(call.tenant, stream.id)
        await call.record(tx, AuditAction.STREAM_DELETED, stream.id, stream=name, **approved)

    await call.write(drop)
    return Response(status_code=204)


@router.post("/v1/audit/streams/{name}/rotate-secret", response_model=AuditStreamSecretView)
@dangerous("always: who has the secret signs batches")
async def rotate_audit_stream_secret(name: Slug, call: AdminCommand) -> Response:
    """Create a new signing secret and return it once. Batches that the receiver refuses until it knows it are
    sent again."""

    async def rotate(tx: Transaction) -> CommandResponse:
        stream = require_found(await tx.audit_streams.by_name(call.tenant, name))
        approved = await use_approval(tx, call, None, {"stream": stream.id, "url": stream.url})
        secret = new_signing_secret(secrets.token_bytes(SECRET_BYTES))
        changed = stream.__replace__(secret_changed_at=call.now, changed_at=call.now)
        after = await tx.audit_streams.rotate_secret(changed, secret, expected=stream.revision)
        await call.record(tx, AuditAction.STREAM_SECRET_ROTATED, after.id, stream=name, **approved)
        return CommandResponse.of(AuditStreamSecretView.of(await _view(tx, after), secret=secret.reveal()))

    return await call.run(None, rotate)


async def _view(tx: Transaction, stream: AuditStream) -> AuditStreamView:
    state = await tx.stream_states.get(stream.tenant, stream.id)
    state = state or StreamState(tenant=stream.tenant, id=stream.id)
    unsent = await cursors.backlog(tx, state)
    progress = state.model_dump(
        include={
            *("sent", "sent_at", "failures", "failing_since", "paused_until", "problem", "response_status")
        }
    )
    return AuditStreamView.of(stream, **progress, unsent=unsent)


def _as_secret(headers: Mapping[str, Secret]) -> Secret:
    return Secret(repr(sorted((name.lower(), value.reveal()) for name, value in headers.items())))


def _origin(url: str) -> str:
    """Scheme and host of the URL. Path and query may contain a secret, and the audit log is permanent."""
    parsed = urlsplit(url)
    return f"{parsed.scheme}://{parsed.netloc}"
