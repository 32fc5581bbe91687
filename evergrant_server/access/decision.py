"""Decides one lease: the caller's permit, the row, its freshness, or the refusal."""

from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

from starlette.requests import Request

from evergrant_server.access.authentication import CACHED_FOR
from evergrant_server.access.callers import Caller
from evergrant_server.access.context import ApiContext
from evergrant_server.access.judged_request import JudgedRequest, refusal
from evergrant_server.access.judgement import lacks, state_refusal, target_of
from evergrant_server.access.limits import LeaseLimits, RateLimited
from evergrant_server.access.narrowing import NarrowedLeases
from evergrant_server.access.recording import CallerNetworks, LeasedConnections, RefusalLog, record_bulk_read
from evergrant_server.access.refreshes import RefreshKey, RefreshWaiter
from evergrant_server.access.refusals import (
    LeaseRequest,
    absent,
    not_leasable,
    refresh_refused,
    refusal_entry,
    require_kind,
    require_provable,
    scope_not_granted,
)
from evergrant_server.audit.lease_ledger import StaleClaim
from evergrant_server.audit.lease_record import LeaseClaim, LeaseFacts
from evergrant_server.core.bounded import Bounded
from evergrant_server.core.clock import seconds_since_boot
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.lifecycle.schedule import NEWEST_RULES, RULES
from evergrant_server.core.messages.connection import RefreshReason
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import KeyPurpose, KeyRing, ReadySeal
from evergrant_server.crypto.envelope import Hold
from evergrant_server.policy import PermitDecision, PermitQuestion
from evergrant_server.store import LeaseRow
from evergrant_server.telemetry import metrics
from providers.requests.dpop import origin_of

JUDGED = "evergrant.judged_lease"  # of the ASGI scope: the JudgedLease, where the key is there
_MAX_TRIES = 4  # for a newer row, while narrower tokens come beside the one that is waited for
_MAX_CACHED = 50_000


class JudgedLease(NamedTuple):
    """A recorded lease and what it was judged by. Until `until`, time alone changes nothing of it."""

    caller: Caller
    request: LeaseRequest
    row: LeaseRow
    facts: LeaseFacts
    until: datetime


@dataclass(slots=True)
class _KeptRow:
    """A cached row, the end of its time here, and what is over once a root leaves that may wrap its keys."""

    row: LeaseRow
    until: datetime
    hold: Hold
    token: ReadySeal | None = None  # once it was opened


class IssuedLease(NamedTuple):
    """The row of a recorded lease, its token still sealed, and the place of its audit record."""

    row: LeaseRow
    place: str
    kept: _KeptRow | None = None  # a narrower token's row isn't

    def open_access_token(self, ring: KeyRing) -> Secret:
        """As `LeaseRow.open_access_token`; while the row is cached, its key is unwrapped once."""
        kept = self.kept
        if kept is None:
            return self.row.open_access_token(ring)
        if kept.token is None:
            kept.token = self.row.ready_token(ring)
        return Secret(kept.token.open().decode())


class LeaseIssuer:
    """Issues leases. Sealed rows are cached; no token leaves before the ledger's commit."""

    def __init__(
        self,
        api: ApiContext,
        refresher: RefreshWaiter,
        refusals: RefusalLog,
        networks: CallerNetworks | None = None,
    ) -> None:
        """Without `networks` nothing is noted of where callers are: a gateway writes no such row."""
        self._api, self._networks = api, networks
        self._refresher = refresher
        self._narrowed = NarrowedLeases(api, refresher)
        self._refusals = refusals
        self.leased = LeasedConnections(api.settings.bulk_read_alarm)
        self.limits = LeaseLimits(api.settings)
        self._margin = RULES[NEWEST_RULES].margin
        self._rows = Bounded[tuple[str, ...], _KeptRow](_MAX_CACHED)
        api.store.servers.on_failover(self._rows.clear)

    async def issue(
        self, request: Request, lease_request: LeaseRequest, known: tuple[Caller, bool]
    ) -> IssuedLease:
        """Decide and record a lease. `known` is the caller as cached.

        One whose connection or app changes before it is recorded is decided again, for as long as a lease
        waits for a refresh. Raises Failure; a refusal of an authenticated app is in the audit log too.
        """
        caller, from_cache = known
        ends = seconds_since_boot() + self._api.settings.lease_wait.total_seconds()
        try:
            with self.limits.admit(request.scope, caller.app):
                while True:
                    call = JudgedRequest.of(self._api, request, caller)
                    with suppress(StaleClaim):
                        try:
                            return await self._decide(call, lease_request, cached=from_cache)
                        except RateLimited:
                            raise
                        except Failure as failure:
                            if not from_cache:
                                await self._refusals.record(refusal_entry(call, lease_request, failure))
                                raise
                    # what is stale, and a refusal from the cache, is decided again from the store
                    self.forget(caller, lease_request)
                    caller, from_cache = await self._api.authenticator.authenticate(request), False
                    self._api.authenticator.cache(caller)
                    if seconds_since_boot() >= ends:
                        break
        except RateLimited as failure:
            call = JudgedRequest.of(self._api, request, known[0])
            await self._refusals.record(refusal_entry(call, lease_request, failure))
            raise
        changing = Failure(ErrorCode.STORE_CONFLICT, "The connection keeps changing.", retry_after=1.0)
        await self._refusals.record(refusal_entry(call, lease_request, changing))
        raise changing

    async def _decide(self, call: JudgedRequest, lease_request: LeaseRequest, *, cached: bool) -> IssuedLease:
        """Check permit, state, freshness and scopes in this order, then record the lease."""
        hold = self._api.ring.hold_of(KeyPurpose.LEASE)
        row = await self._load_row(call.caller, lease_request, cached=cached)
        if cached and not self._can_serve_cached(row, lease_request):
            raise StaleClaim  # a cached caller starts nothing: no link, no refresh
        if row is None:
            raise await absent(call, lease_request)
        if lease_request.proxied is not None:
            lease_request = replace(lease_request, judged=await lease_request.proxied.judged(row))
        call.permitted(lease_request.action, of=target_of(row), hidden=True, proxied=lease_request.judged)
        if requested := lease_request.scopes:
            judge = call.permit_judge
            _require(call, judge.request_question(row, lease_request.action, requested, lease_request.judged))
        require_kind(lease_request, row)
        narrower = call.permit_judge.narrower(row, lease_request.scopes or (), exact=lease_request.exact)
        if row.leasable and narrower:
            row = await self._narrowed.row(call, lease_request, row, narrower, cached=cached)
        elif row.leasable:
            row = await self._refreshed_row(call, lease_request, row)
        if state_refusal(row, self._now()) is not None:
            raise await not_leasable(call, lease_request, row)
        decision = await self._check_scopes(call, lease_request, row, cached=cached)
        if lease_request.proof is not None:
            await require_provable(self._api, row, lease_request.proof)
        if lease_request.proxied is not None:
            await lease_request.proxied.prepare(row, decision)
        self._api.ring.require(KeyPurpose.LEASE)
        self.limits.count_integration(call.request.scope, row.tenant, row.integration)
        recorded = await self._api.ledger.record(claim_of(call, lease_request, row, decision))
        kept = None if narrower else self._remember(call, lease_request, row, recorded.facts, hold)
        if self._networks is not None:
            self._networks.note(call)
        if self.leased.reaches_alarm(call.caller.app.id, row.connection_id, self._now()):
            await self.raise_alarm(call)
        return IssuedLease(row, recorded.place, kept)

    async def raise_alarm(self, call: JudgedRequest) -> None:
        """Record that the caller's app leases many connections."""
        with suppress(Failure):  # the lease itself is recorded
            async with self._api.store.write() as tx:
                await record_bulk_read(tx, call, "lease", connections=self._api.settings.bulk_read_alarm)

    # --- rows -------------------------------------------------------------------------

    async def _load_row(
        self, caller: Caller, lease_request: LeaseRequest, *, cached: bool
    ) -> LeaseRow | None:
        known = self._rows.get(lease_request.cache_key(caller.tenant)) if cached else None
        if known is not None and self._is_usable(known) and self._is_fresh(known.row, lease_request):
            return known.row
        rows = self._api.lease_rows
        if lease_request.names is not None:
            names = lease_request.names
            return await rows.load_by_names(caller.tenant, names.integration, names.subject, names.label)
        assert lease_request.connection_id is not None
        return await rows.load(caller.tenant, lease_request.connection_id)

    def _is_usable(self, known: _KeptRow) -> bool:
        return self._now() < known.until and not known.hold.over

    def _remember(
        self, call: JudgedRequest, lease_request: LeaseRequest, row: LeaseRow, facts: LeaseFacts, hold: Hold
    ) -> _KeptRow:
        key = lease_request.cache_key(call.tenant)
        known = self._rows.get(key)
        if known is None or known.row is not row:
            known = self._rows[key] = _KeptRow(row, self._now() + CACHED_FOR, hold)
        if JUDGED in call.request.scope:
            until = self._unchanged_until(call, row, min(known.until, facts.valid_until))
            call.request.scope[JUDGED] = JudgedLease(call.caller, lease_request, row, facts, until)
        return known

    def _unchanged_until(self, call: JudgedRequest, row: LeaseRow, until: datetime) -> datetime:
        """The first moment from which the lease may be judged otherwise, or what it was judged by is read
        again, `until` at the latest."""
        grant, now = row.grant, call.now
        assert grant is not None
        ends = [until, self._api.authenticator.cached_until(call.caller) or now]
        ends += [
            ends_at for permit in call.caller.permits if (ends_at := permit.expires_at) and ends_at > now
        ]
        if grant.expires_at is not None:
            ends.append(grant.expires_at - grant.refresh_margin(self._margin))
        return min(ends)

    def forget(self, caller: Caller, lease_request: LeaseRequest) -> None:
        """Have the caller and its connection's row read again: something of them has changed."""
        self._rows.pop(lease_request.cache_key(caller.tenant), None)
        self._api.authenticator.evict(caller)

    # --- freshness --------------------------------------------------------------------

    async def _refreshed_row(
        self, call: JudgedRequest, lease_request: LeaseRequest, row: LeaseRow
    ) -> LeaseRow:
        """The row, or a newer one. A valid token is served even if the refresh fails (rule 5)."""
        if self._is_fresh(row, lease_request) or row.state is not LifecycleState.ACTIVE:
            return row
        key = RefreshKey(row.tenant, row.connection_id, row.generation, RefreshReason.DUE)
        if self._is_valid(row) and lease_request.min_ttl is None:
            self._refresher.start_refresh(key, call.context)
            return row
        for _ in range(_MAX_TRIES):
            result = await self._refresher.wait_for_newer(key, call.context, call.patience_s)
            newest = result.row or row
            if self._is_valid(newest) or newest.state is not LifecycleState.ACTIVE:
                return newest
            if newest.generation <= key.seen or newest.brought_token_after(key.seen):
                break
            key = key._replace(seen=newest.generation)  # a narrower token came beside this one
        raise refresh_refused(result, newest)

    def _is_fresh(self, row: LeaseRow, lease_request: LeaseRequest) -> bool:
        return row.grant is not None and row.grant.is_fresh(self._now(), self._margin, lease_request.min_ttl)

    def _is_valid(self, row: LeaseRow) -> bool:
        return row.grant is not None and row.grant.is_valid(self._now())

    def _can_serve_cached(self, row: LeaseRow | None, lease_request: LeaseRequest) -> bool:
        """True when this row can be leased without waiting for a refresh."""
        if row is None or not row.leasable or not self._is_valid(row):
            return False
        return lease_request.min_ttl is None or self._is_fresh(row, lease_request)

    def _now(self) -> datetime:
        return self._api.clock.now()

    # --- permits ----------------------------------------------------------------------

    async def _check_scopes(
        self, call: JudgedRequest, lease_request: LeaseRequest, row: LeaseRow, *, cached: bool
    ) -> PermitDecision:
        """The requested scopes must be granted; all scopes of the token must be permitted."""
        assert row.grant is not None
        requested = lease_request.scopes or ()
        missing = lacks(row.grant, requested)
        if missing and cached:
            raise StaleClaim
        if missing:
            raise await scope_not_granted(call, lease_request, row, missing)
        judge = call.permit_judge
        question = judge.token_question(row, lease_request.action, requested, lease_request.judged)
        decision = _require(call, question)
        if decision.observed:
            metrics.count(metrics.OBSERVED_DENIALS, "observed", row.provider)
        return decision


def _require(call: JudgedRequest, question: PermitQuestion) -> PermitDecision:
    """The decision that allows it. Raises Failure NOT_PERMITTED, SCOPE_NOT_PERMITTED."""
    decision = call.decide(question)
    if not decision.allowed:
        raise refusal(decision, request=question.request)
    return decision


def claim_of(
    call: JudgedRequest, lease_request: LeaseRequest, row: LeaseRow, decision: PermitDecision
) -> LeaseClaim:
    """The lease as it was judged, with the revisions by which the ledger checks it again."""
    assert row.grant is not None
    app, credential, proof = call.caller.app, call.caller.credential, lease_request.proof
    proxied = lease_request.proxied
    return LeaseClaim(
        tenant=app.tenant,
        connection_id=row.connection_id,
        connection_revision=row.connection_revision,
        app_id=app.id,
        app_revision=app.revision,
        key_id=credential.id,
        valid_until=min(credential.valid_until, decision.valid_until or credential.valid_until),
        permit=decision.permit,
        observed=decision.observed,
        authorization=call.caller.authorization,
        generation=row.generation,
        context=call.context,
        scopes=row.grant.scopes,
        at=call.now,
        dpop_request=None if proof is None else f"{proof.method} {origin_of(proof.url)}",
        signed_request=lease_request.signs,
        proxied=None if proxied is None else {"call": proxied.id, **proxied.recorded},
        through=None if proxied is None else proxied.through,
        delegated=None if call.caller.delegated is None else call.caller.delegated.use,
    )
