"""The claim of a lease, and its audit record from ready pieces: the bytes and hash that `hash_chain` makes.

`LeaseFacts` has what all leases of one judged pair (caller, connection) share; a lease adds its moment and
its trace. Its place, number and previous hash, is added last, under the lock of the chain. `LeaseRecord.body`
is the rest: whole before the lock, and so is a hash of it, such as a leaf's of a Merkle tree (RFC 9162
section 2.1.1).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from json.encoder import encode_basestring_ascii as quoted
from typing import NamedTuple

from evergrant_server.audit.delegated_leases import DelegatedUse
from evergrant_server.audit.hash_chain import RECORD_FORMAT, canonical_json, format_timestamp
from evergrant_server.core.access import Permit
from evergrant_server.core.audit import AuditAction, bound_scopes
from evergrant_server.core.ids import AppId, ConnectionId, KeyId, Tenant
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.oauth.authorizations import TokenFamily


@dataclass(frozen=True, slots=True)
class LeaseClaim:
    """A lease that was judged and not handed out yet, with the revisions it was judged by."""

    tenant: Tenant
    connection_id: ConnectionId
    connection_revision: int
    app_id: AppId
    app_revision: int
    key_id: KeyId
    valid_until: datetime  # the end of the key or the permit: its passing moves no revision
    generation: int
    context: RequestContext
    scopes: tuple[str, ...]
    at: datetime
    dpop_request: str | None = None  # method and origin: a proof for one request instead of the token
    signed_request: str = ""  # the signed request, when a signature is leased instead of the token
    proxied: Mapping[str, object] | None = None  # what is recorded of a call that is made with it
    through: AppId | None = None  # the Envoy that makes the call instead
    permit: Permit | None = None  # that allowed it
    authorization: TokenFamily | None = None  # of the gateway's client that acts as the app
    observed: tuple[str, ...] = ()  # the names of permits that would have denied it in mode enforce
    delegated: DelegatedUse | None = None  # on whose behalf, and under which other apps

    @property
    def named(self) -> set[str]:
        """The ids of what mustn't change until the lease is committed."""
        names: set[str] = {self.connection_id, self.app_id, self.tenant}
        return names if self.delegated is None else names | self.delegated.named


class LeaseRecord(NamedTuple):
    """The record of one lease in a shard, up to its place: `head` and `tail` are the JSON text around it."""

    facts: "LeaseFacts"
    at: datetime
    moment: str  # `at` as it is hashed
    trace_id: str
    head: str
    tail: str

    @property
    def body(self) -> str:
        """The canonical JSON of the record without its place."""
        return f'{self.head}"run_id":null,{self.tail}'

    def hash_behind(self, previous: str, seq: int) -> str:
        """`hash_chain.record_hash` of this record as number `seq`, behind the hash `previous`."""
        place = f'"previous_hash":"{previous}","run_id":null,"seq":{seq},'
        return hashlib.sha256(f"{self.head}{place}{self.tail}".encode()).hexdigest()


class LeaseFacts:
    """What the leases of a pair have in common: the revisions they were judged by, and their record's text.

    They hold as long as nothing of the claim changes but its moment and its trace.
    """

    __slots__ = (
        "_until_at", "_until_place", "_until_trace", "action", "app", "app_id", "by", "claim", "connection",
        "connection_id", "delegated", "detail", "generation", "lease_due", "named", "tenant", "use_due",
        "valid_until",
    )  # fmt: skip

    def __init__(self, claim: LeaseClaim, shard: str) -> None:
        """Raises TypeError when the claim has a detail that JSON can't say."""
        self.claim = claim
        self.tenant, self.app_id, self.connection_id = claim.tenant, claim.app_id, claim.connection_id
        self.generation, self.valid_until = claim.generation, claim.valid_until
        self.delegated, self.named = claim.delegated, frozenset(claim.named)
        # when the ledger writes again that key, permit and connection were used; None: it hasn't looked yet
        self.use_due: datetime | None = None
        self.lease_due: datetime | None = None
        # the rows as a writer reads them
        self.connection = (claim.connection_id, claim.tenant, claim.connection_revision, claim.generation)
        self.app = (claim.app_id, claim.tenant, claim.app_revision, False)
        action, detail = _recorded(claim)
        self.action, self.by = action.value, claim.context.by
        named = {"app": claim.app_id, "generation": claim.generation, **detail}
        self.detail = canonical_json(bound_scopes(named))
        self._until_at = f'{{"action":{quoted(self.action)},"at":"'
        self._until_place = (
            f'","by":{quoted(self.by)},"detail":{self.detail},"event_id":null,"format":{RECORD_FORMAT},'
            f'"object":{quoted(claim.connection_id)},'
        )
        self._until_trace = f'"shard":{quoted(shard)},"tenant":{quoted(claim.tenant)},"trace_id":'

    def record(self, at: datetime, trace_id: str) -> LeaseRecord:
        moment = format_timestamp(at)
        head = f"{self._until_at}{moment}{self._until_place}"
        tail = f'{self._until_trace}{quoted(trace_id)},"workflow_id":null}}'
        return LeaseRecord(self, at, moment, trace_id, head, tail)


def _recorded(claim: LeaseClaim) -> tuple[AuditAction, dict[str, object]]:
    """The action of a claim's record, and its details beside app and generation."""
    action = AuditAction.LEASE_ISSUED
    detail: dict[str, object] = {"scopes": list(claim.scopes)}
    if claim.dpop_request is not None:
        action = AuditAction.DPOP_PROOF_ISSUED
        detail = {"for": claim.dpop_request}
    elif claim.proxied is not None:
        action = AuditAction.PROXY_CALLED
        detail = dict(claim.proxied)
        if claim.through is not None:
            detail["through"] = claim.through
    elif claim.signed_request:
        detail["signed"] = claim.signed_request
    if claim.authorization is not None:
        detail |= claim.authorization.named
    if claim.permit is not None:
        detail["permit"] = claim.permit.name
    if claim.delegated is not None:
        detail["acts_for"] = claim.delegated.recorded
    if claim.observed:
        detail["would_be_denied_by"] = list(claim.observed)
    return action, detail
