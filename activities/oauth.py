"""Reads metadata documents of OAuth clients; the API sends no requests (ADR 0008).

draft-ietf-oauth-client-id-metadata-document: the document is public, nothing is sent with the request, and no
redirect is followed. What it says is a stranger's word, of a host that is known.
"""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import httpx2
from temporalio import activity

from activities.support.transactions import commit_with_retries
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import OAuthClientId, derived_id
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.integrations import ClientDocumentResult, ReadClientDocument
from evergrant_server.core.oauth.client_metadata import (
    ClientMetadata,
    MetadataRefused,
    is_document_url,
    read_client_document,
)
from evergrant_server.core.oauth.clients import ClientKind, GatewayClient
from evergrant_server.core.text import is_storable
from evergrant_server.crypto.client_assertions import public_key_set
from evergrant_server.egress import Egress
from evergrant_server.store import Store, Transaction
from evergrant_server.telemetry import metrics
from providers.registration.documents import issuer_unreachable
from providers.responses.raw_reply import UnreadableBody, parse_body

_LONGEST = 16 * 1024  # section 6.6 advises 5 KiB
MOST_UNUSED = 1000  # clients that were read and never let in: the oldest give way to new ones
_SHORTEST_CACHE, _USUAL_CACHE, _LONGEST_CACHE = timedelta(minutes=5), timedelta(hours=1), timedelta(days=1)
_MAX_AGE = re.compile(r"(?:^|[\s,])max-age=\"?([0-9]{1,9})\"?(?:[\s,]|$)", re.IGNORECASE)


class ClientDocumentActivities:
    """The API waits for the workflow of its one activity."""

    def __init__(self, store: Store, egress: Egress, clock: Clock) -> None:
        self._store = store
        self._egress = egress
        self._clock = clock

    @activity.defn(name=jobs.READ_CLIENT_DOCUMENT.name)
    async def read_document(self, request: ReadClientDocument) -> ClientDocumentResult:
        """Write down what the document says now, or say why it can't be used.

        Where it is the client's own that can't be used, what it said before counts no more; where it can't be
        read, the row stays as it is.
        """
        try:
            metadata, fresh_for = await self._read(request.client_id)
        except Failure as failure:
            return _failed(failure)
        except MetadataRefused as refused:
            failure = _unusable(refused.description)
            await commit_with_retries(self._store, lambda tx: self._withdraw(tx, request, failure.detail))
            return _failed(failure)
        await commit_with_retries(self._store, lambda tx: self._write(tx, request, metadata, fresh_for))
        metrics.count(metrics.CLIENTS, "document_read")
        return ClientDocumentResult()

    async def _read(self, url: str) -> tuple[ClientMetadata, timedelta]:
        """Raises Failure CLIENT_UNKNOWN with the reason, EGRESS_REFUSED before anything is sent; and
        MetadataRefused for what the client's own document says."""
        if not is_document_url(url):
            raise _unusable("its address isn't an https URL with a path")
        self._egress.policy.check_endpoint(url)
        async with self._egress.client(headers={"Accept": "application/json"}) as http:
            try:
                response = await http.get(url)
            except httpx2.TransportError as error:
                raise _unusable(issuer_unreachable(url, error).detail) from None
            except Failure as failure:  # of the guard: an address inside, an endless answer
                raise _unusable(failure.detail) from None
        if response.status_code != 200:
            raise _unusable(f"its address answers with status {response.status_code}")
        return _parsed(url, response.content), _fresh_for(response)

    async def _write(
        self, tx: Transaction, request: ReadClientDocument, metadata: ClientMetadata, fresh_for: timedelta
    ) -> None:
        now, before = self._clock.now(), await tx.oauth_clients.by_client_id(request.client_id)
        described: dict[str, Any] = {
            "name": metadata.name,
            "redirect_uris": metadata.redirect_uris,
            "application_type": metadata.application_type,
            "auth_method": metadata.auth_method,
            "jwks": metadata.jwks,
            "client_uri": metadata.client_uri,
        }
        if before is not None:
            after = before.__replace__(**described, fresh_until=now + fresh_for)
            await tx.oauth_clients.replace(after, expected=before.revision)
            if all(getattr(before, name) == value for name, value in described.items()):
                return
        else:
            after = GatewayClient(
                tenant=request.tenant,
                id=OAuthClientId(derived_id("cli", request.client_id)),
                client_id=request.client_id,
                kind=ClientKind.DOCUMENT,
                created_at=now,
                fresh_until=now + fresh_for,
                **described,
            )
            await tx.oauth_clients.evict_unused(MOST_UNUSED - 1)
            await tx.oauth_clients.add(after)
        await self._record(tx, request, after, redirect_uris=list(after.redirect_uris))

    async def _withdraw(self, tx: Transaction, request: ReadClientDocument, why: str) -> None:
        before = await tx.oauth_clients.by_client_id(request.client_id)
        if before is None or before.fresh_until is None:
            return
        after = before.__replace__(fresh_until=None)
        await tx.oauth_clients.replace(after, expected=before.revision)
        await self._record(tx, request, after, refused=why)

    async def _record(
        self, tx: Transaction, request: ReadClientDocument, client: GatewayClient, **detail: Any
    ) -> None:
        entry = AuditEntry(
            tenant=client.tenant,
            at=self._clock.now(),
            action=AuditAction.OAUTH_CLIENT_PUT,
            object=client.id,
            context=request.context,
            detail={"client_id": client.client_id, "name": client.name, "kind": client.kind, **detail},
        )
        await audit.append(tx, entry)


def _parsed(url: str, body: bytes) -> ClientMetadata:
    """Raises MetadataRefused for the document of this client, Failure for any other answer."""
    document: Mapping[str, Any] = {}
    try:
        if len(body) > _LONGEST:
            raise UnreadableBody(f"a body of {len(body)} bytes, and at most {_LONGEST} are read")
        document = parse_body(body, "json")
        if not is_storable(document):
            raise UnreadableBody("text that can't be stored")
        return read_client_document(url, document, public_key_set)
    except UnreadableBody as why:
        raise _unusable(f"it has {why}") from None
    except MetadataRefused as refused:
        if document.get("client_id") == url:
            raise
        raise _unusable(refused.description) from None


def _failed(failure: Failure) -> ClientDocumentResult:
    metrics.count(metrics.CLIENTS, failure.code)
    return ClientDocumentResult(failure=failure.code, detail=failure.detail)


def _fresh_for(response: httpx2.Response) -> timedelta:
    """As long as its headers say (RFC 9111 section 5.2.2), within limits."""
    max_age = _MAX_AGE.search(response.headers.get("cache-control", ""))
    lasts = _USUAL_CACHE if max_age is None else timedelta(seconds=int(max_age[1]))
    return min(max(lasts, _SHORTEST_CACHE), _LONGEST_CACHE)


def _unusable(why: str) -> Failure:
    return Failure(ErrorCode.CLIENT_UNKNOWN, f"The client's metadata document can't be used: {why}.")
