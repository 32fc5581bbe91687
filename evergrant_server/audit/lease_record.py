"""The claim of a lease, and the body of its audit record from ready pieces, as `bodies.body_of` makes it.

`LeaseFacts` has what all leases of one judged pair (caller, connection) share; a lease adds its moment, its
trace and its salt. Body and leaf are whole before the lock of the tree; its place follows from the lock.

A lease by delegation is compared with each delegation up to the root, and what began it. A row of them that
was stopped, changed or deleted since the lease was judged has another revision, or none.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, NamedTuple

from evergrant_server.audit.bodies import beginning, canonical_json, format_timestamp, salt
from evergrant_server.audit.merkle_tree import leaf_hash
from evergrant_server.core.access import Permit
from evergrant_server.core.audit import AuditAction, bound_scopes
from evergrant_server.core.ids import AppId, ConnectionId, KeyId, Tenant
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.oauth.authorizations import TokenFamily

_DELEGATION_ROWS = "SELECT id, tenant, revision FROM {table} WHERE id {among}"
_DELEGATIONS = " UNION ALL ".join(
    _DELEGATION_ROWS.replace("{table}", table) for table in ("delegation", "delegation_rule")
)
_LITE_DELEGATIONS = _DELEGATIONS.replace("{among}", "IN (SELECT value FROM json_each(:ids))")
_PG_DELEGATIONS = _DELEGATIONS.replace("{among}", "= ANY($1::varchar[])")

Revisions = Mapping[str, tuple[object, ...]]  # (id, tenant, revision) by the id


class DelegatedUse(NamedTuple):
    """The chain of one lease, with the revisions it was judged by; for the record, who acts for whom.

    `rows` are delegations and the rule of their root; `apps` those that the caller acts under.
    """

    rows: tuple[tuple[str, int], ...]
    apps: tuple[tuple[AppId, int], ...]
    recorded: Mapping[str, object]

    @property
    def named(self) -> set[str]:
        """What mustn't change until the lease is committed."""
        return {id for id, _ in self.rows} | {id for id, _ in self.apps}

    def holds(self, tenant: Tenant, rows: Revisions, apps: Revisions) -> bool:
        """Whether all of it is as it was. `apps` have `disabled` behind their revision."""
        return all(rows.get(id) == (id, tenant, revision) for id, revision in self.rows) and all(
            apps.get(id) == (id, tenant, revision, False) for id, revision in self.apps
        )


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
    """The record of one lease, up to its place."""

    facts: "LeaseFacts"
    at: datetime
    moment: str  # `at` as the body has it
    body: str
    leaf: bytes


class LeaseFacts:
    """What the leases of a pair have in common: the revisions they were judged by, and their record's text.

    They hold as long as nothing of the claim changes but its moment and its trace.
    """

    __slots__ = (
        "_until_at", "_until_salt", "_until_trace", "action", "app", "app_id", "claim", "connection",
        "connection_id", "delegated", "generation", "lease_due", "named", "tenant", "use_due", "valid_until",
    )  # fmt: skip

    def __init__(self, claim: LeaseClaim) -> None:
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
        self.action = action.value
        named = {"app": claim.app_id, "generation": claim.generation, **detail}
        self._until_at, until_trace = beginning("\0", self.action, claim.connection_id).split("\0")
        self._until_trace = f'{until_trace}"by":{quoted(claim.context.by)},"trace":'
        self._until_salt = f',"detail":{canonical_json(bound_scopes(named))},"s":"'

    def record(self, at: datetime, trace_id: str) -> LeaseRecord:
        moment = format_timestamp(at)
        head = f"{self._until_at}{moment}{self._until_trace}{quoted(trace_id)}"
        body = f'{head}{self._until_salt}{salt()}"}}'
        return LeaseRecord(self, at, moment, body, leaf_hash(body.encode()))


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


def rows_sqlite(raw: Any, uses: Sequence[DelegatedUse]) -> Revisions:
    """The rows that these leases name. A batch without delegations asks for nothing."""
    return (
        _delegations_by_id(raw.execute(_LITE_DELEGATIONS, {"ids": json.dumps(_delegation_ids(uses))}))
        if uses
        else {}
    )


async def rows_postgresql(raw: Any, uses: Sequence[DelegatedUse]) -> Revisions:
    return _delegations_by_id(await raw.fetch(_PG_DELEGATIONS, _delegation_ids(uses))) if uses else {}


def _delegation_ids(uses: Sequence[DelegatedUse]) -> list[str]:
    return sorted({id for use in uses for id, _ in use.rows})


def _delegations_by_id(rows: Iterable[Any]) -> Revisions:
    return {row[0]: tuple(row) for row in rows}
