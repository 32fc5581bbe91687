"""Deciding one lease: who asks, for which row, is it fresh, and who must repair it if not."""

from dataclasses import dataclass
from datetime import datetime

from starlette.requests import Request

from evergrant_server.api.connections.create import raise_scope_not_permitted
from evergrant_server.api.http.authentication import Caller
from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.tracing import trace_of
from evergrant_server.api.leases.dpop import DpopProofs
from evergrant_server.api.leases.refresher import RefreshWaitResult
from evergrant_server.api.leases.refusals import LeaseRefusals, LeaseRequest
from evergrant_server.audit.lease_ledger import LeaseClaim, StaleClaim
from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.token_pair import OAUTH1
from evergrant_server.core.errors import ErrorCode, Failure, FailureKind
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.lifecycle.schedule import NEWEST_RULES, RULES
from evergrant_server.core.messages.connection import RefreshReason, RequestContext
from evergrant_server.policy import DecisionReason, decide, scopes_above
from evergrant_server.store import LeaseRow
from providers.requests.dpop import origin_of

_MAX_TRIES = 4  # a row that keeps changing under a lease is worth a few looks, not a loop
_MAX_CACHED = 50_000

_NameKey = tuple[Tenant, str, str, str]
_IdKey = tuple[Tenant, ConnectionId]


@dataclass(frozen=True)
class Lease:
    """A lease that is in the audit log, with its token still sealed in the row."""

    row: LeaseRow


class LeaseIssuer:
    """The lease path. Sealed rows are cached; nothing leaves before the ledger's commit agrees."""

    def __init__(self, parts: ApiContext) -> None:
        self._parts = parts
        self._margin = RULES[NEWEST_RULES].margin
        self._refusals = LeaseRefusals(parts)
        self._proving = DpopProofs(parts)
        self._rows: dict[_NameKey | _IdKey, LeaseRow] = {}

    async def issue(self, request: Request, ask: LeaseRequest, known: tuple[Caller, bool]) -> Lease:
        """Judge, record, and only then hand out. `known` is what `Authenticator.cached` said.

        Raises Failure; one that concerns an authenticated app is in the audit log too.
        """
        caller, from_memory = known
        trace = trace_of(request)
        for _ in range(_MAX_TRIES):
            asked = trace.request_context(caller.by)
            try:
                return await self._decide(caller, ask, asked, cached=from_memory)
            except StaleClaim:
                self._forget(caller, ask)
            except Failure as failure:
                if not from_memory:
                    await self._refusals.record(caller, ask, asked, failure)
                    raise
                self._forget(caller, ask)  # what was refused from memory is judged again from the store
            caller, from_memory = await self._parts.authenticator.authenticate(request), False
            self._parts.authenticator.cache(caller)
        failure = Failure(ErrorCode.STORE_CONFLICT, "The connection keeps changing.", retry_after=1.0)
        await self._refusals.record(caller, ask, asked, failure)
        raise failure

    async def _decide(
        self, caller: Caller, ask: LeaseRequest, asked: RequestContext, *, cached: bool
    ) -> Lease:
        row = await self._load_row(caller, ask, cached=cached)
        if cached and not self._can_serve_cached(row, ask):
            raise StaleClaim  # a caller from memory makes nothing happen: no link, no refresh
        if row is None:
            raise await self._refusals.absent(caller, ask, asked)
        self._check_permit(caller, ask, row)
        _require_kind(ask, row)
        if row.leasable:
            row = await self._refreshed_row(ask, row, asked)
        if not row.leasable or not self._is_valid(row):
            raise await self._refusals.not_leasable(caller, ask, row, asked)
        self._check_scopes(caller, ask, row)
        if ask.proof is not None:
            await self._proving.require_provable(row, ask.proof)
        await self._parts.ledger.record(self._claim(caller, ask, row, asked))
        self._remember(ask, row)
        return Lease(row)

    # --- rows -------------------------------------------------------------------------

    async def _load_row(self, caller: Caller, ask: LeaseRequest, *, cached: bool) -> LeaseRow | None:
        known = self._rows.get(_cache_key(caller, ask)) if cached else None
        if known is not None and self._is_fresh(known, ask):
            return known
        rows = self._parts.lease_rows
        if ask.names is not None:
            it = ask.names
            return await rows.load_by_names(caller.tenant, it.integration, it.subject, it.label)
        assert ask.connection_id is not None
        return await rows.load(caller.tenant, ask.connection_id)

    def _remember(self, ask: LeaseRequest, row: LeaseRow) -> None:
        if len(self._rows) >= _MAX_CACHED:
            self._rows.clear()
        if ask.names is not None:
            self._rows[(row.tenant, row.integration, row.subject, row.label)] = row
        else:
            self._rows[(row.tenant, row.connection_id)] = row

    def _forget(self, caller: Caller, ask: LeaseRequest) -> None:
        self._rows.pop(_cache_key(caller, ask), None)
        self._parts.authenticator.evict(caller)

    # --- freshness --------------------------------------------------------------------

    async def _refreshed_row(self, ask: LeaseRequest, row: LeaseRow, asked: RequestContext) -> LeaseRow:
        """The row, or a newer one. Whatever a refresh does, a token that is valid is served."""
        if self._is_fresh(row, ask) or row.state is not LifecycleState.ACTIVE:
            return row
        freshening = self._parts.freshening
        if self._is_valid(row) and ask.min_ttl is None:
            freshening.start_refresh(row.tenant, row.connection_id, row.generation, asked)
            return row
        outcome = await freshening.wait_for_newer(
            row.tenant, row.connection_id, row.generation, asked, RefreshReason.DUE
        )
        newest = outcome.row or row
        if self._is_valid(newest) or newest.state is not LifecycleState.ACTIVE:
            return newest
        raise _refusal_of(outcome, newest)

    def _is_fresh(self, row: LeaseRow, ask: LeaseRequest) -> bool:
        return row.grant is not None and row.grant.is_fresh(self._now(), self._margin, ask.min_ttl)

    def _is_valid(self, row: LeaseRow) -> bool:
        return row.grant is not None and row.grant.is_valid(self._now())

    def _can_serve_cached(self, row: LeaseRow | None, ask: LeaseRequest) -> bool:
        """Can this row be leased as it is, at most with a refresh ahead?"""
        if row is None or not row.leasable or not self._is_valid(row):
            return False
        return ask.min_ttl is None or self._is_fresh(row, ask)

    def _now(self) -> datetime:
        return self._parts.clock.now()

    # --- permits ----------------------------------------------------------------------

    def _check_permit(self, caller: Caller, ask: LeaseRequest, row: LeaseRow) -> None:
        verdict = decide(
            caller.permits, integration=row.integration, subject=row.subject, action=Action.TOKEN
        )
        if verdict.reason is DecisionReason.NO_PERMIT:
            raise Failure(ErrorCode.NOT_FOUND)
        if not verdict.allowed:
            raise Failure(ErrorCode.NOT_PERMITTED, "That needs the action token.")
        if ask.body.scopes:
            self._within_ceiling(caller, row, ask.body.scopes)

    def _check_scopes(self, caller: Caller, ask: LeaseRequest, row: LeaseRow) -> None:
        """What was asked must be granted; and all that the token can do must be permitted."""
        assert row.grant is not None
        missing = scopes_above(ask.body.scopes or (), row.grant.scopes)
        if missing:
            raise Failure(
                ErrorCode.SCOPE_NOT_GRANTED, connection_id=row.connection_id, scopes=" ".join(missing)
            )
        self._within_ceiling(caller, row, row.grant.scopes)

    def _within_ceiling(self, caller: Caller, row: LeaseRow, scopes: tuple[str, ...]) -> None:
        offline = self._parts.registry.offline_scope(row.provider)
        verdict = decide(
            caller.permits,
            integration=row.integration,
            subject=row.subject,
            action=Action.TOKEN,
            scopes=(scope for scope in scopes if scope != offline),
        )
        if not verdict.allowed:
            raise_scope_not_permitted(scopes_above((it for it in scopes if it != offline), verdict.ceiling))

    def _claim(self, caller: Caller, ask: LeaseRequest, row: LeaseRow, asked: RequestContext) -> LeaseClaim:
        assert row.grant is not None
        proof_for = None if ask.proof is None else f"{ask.proof.method} {origin_of(ask.proof.url)}"
        return LeaseClaim(
            tenant=caller.tenant,
            connection_id=row.connection_id,
            connection_revision=row.connection_revision,
            app_id=caller.app.id,
            app_revision=caller.app.revision,
            generation=row.generation,
            context=asked,
            scopes=row.grant.scopes,
            at=self._now(),
            dpop_request=proof_for,
            signed_request=ask.signs,
        )


def _require_kind(ask: LeaseRequest, row: LeaseRow) -> None:
    """A token whose requests are signed stays here; there is nothing to sign with any other."""
    if row.grant is None:
        return
    signs = row.grant.token_type == OAUTH1
    if signs and not ask.signs:
        raise Failure(ErrorCode.SIGNATURE_NEEDED, connection_id=row.connection_id)
    if ask.signs and not signs:
        raise Failure(ErrorCode.INVALID_REQUEST, "Its requests are not signed: lease its token.", field="url")


def _cache_key(caller: Caller, ask: LeaseRequest) -> _NameKey | _IdKey:
    if ask.names is not None:
        return (caller.tenant, ask.names.integration, ask.names.subject, ask.names.label)
    assert ask.connection_id is not None
    return (caller.tenant, ask.connection_id)


def _refusal_of(outcome: RefreshWaitResult, row: LeaseRow) -> Failure:
    failure = outcome.failure or Failure(ErrorCode.REFRESH_PENDING, retry_after=1.0)
    if failure.kind is FailureKind.RECONNECT_NEEDED:  # the store will say so in a moment, with a link
        return Failure(failure.code, connection_id=row.connection_id)
    return Failure(
        failure.code, failure.detail, retry_after=failure.retry_after, connection_id=row.connection_id
    )
