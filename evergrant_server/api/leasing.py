"""Deciding one lease: who asks, for which row, is it fresh, and who must repair it if not."""

from dataclasses import dataclass
from datetime import datetime

from starlette.requests import Request

from evergrant_server.api.authentication import Caller
from evergrant_server.api.establishing import refuse_scopes
from evergrant_server.api.freshening import Outcome
from evergrant_server.api.parts import Parts
from evergrant_server.api.proving import Proving
from evergrant_server.api.refusals import Ask, Refusals
from evergrant_server.api.tracing import trace_of
from evergrant_server.audit.leases import LeaseClaim, Stale
from evergrant_server.core.access import Action
from evergrant_server.core.connection import State
from evergrant_server.core.errors import Code, Failure, Kind
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages import Asked, Wish
from evergrant_server.core.schedule import NEWEST_RULES, RULES
from evergrant_server.core.token_pair import OAUTH1
from evergrant_server.policy import Reason, above, decide
from evergrant_server.store import LeaseRow
from providers.proofs import origin_of

_TRIES = 4  # a row that keeps changing under a lease is worth a few looks, not a loop
_MOST_CACHED = 50_000

_Names = tuple[Tenant, str, str, str]
_Id = tuple[Tenant, ConnectionId]


@dataclass(frozen=True)
class Lease:
    """A lease that is in the audit log, with its token still sealed in the row."""

    row: LeaseRow


class Leasing:
    """The lease path. Sealed rows are cached; nothing leaves before the ledger's commit agrees."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._margin = RULES[NEWEST_RULES].margin
        self._refusals = Refusals(parts)
        self._proving = Proving(parts)
        self._rows: dict[_Names | _Id, LeaseRow] = {}

    async def lease(self, request: Request, ask: Ask, known: tuple[Caller, bool]) -> Lease:
        """Judge, record, and only then hand out. `known` is what `Authenticator.cached` said.

        Raises Failure; one that concerns an authenticated app is in the audit log too.
        """
        caller, from_memory = known
        trace = trace_of(request)
        for _ in range(_TRIES):
            asked = trace.asked_by(caller.by)
            try:
                return await self._once(caller, ask, asked, cached=from_memory)
            except Stale:
                self._forget(caller, ask)
            except Failure as failure:
                if not from_memory:
                    await self._refusals.record(caller, ask, asked, failure)
                    raise
                self._forget(caller, ask)  # what was refused from memory is judged again from the store
            caller, from_memory = await self._parts.authenticator.fresh(request), False
            self._parts.authenticator.remember(caller)
        failure = Failure(Code.STORE_CONFLICT, "The connection keeps changing.", retry_after=1.0)
        await self._refusals.record(caller, ask, asked, failure)
        raise failure

    async def _once(self, caller: Caller, ask: Ask, asked: Asked, *, cached: bool) -> Lease:
        row = await self._row(caller, ask, cached=cached)
        if cached and not self._servable(row, ask):
            raise Stale  # a caller from memory makes nothing happen: no link, no refresh
        if row is None:
            raise await self._refusals.nothing_there(caller, ask, asked)
        self._check_permit(caller, ask, row)
        _check_kind(ask, row)
        if row.leasable:
            row = await self._fresh(ask, row, asked)
        if not row.leasable or not self._is_valid(row):
            raise await self._refusals.not_leasable(caller, ask, row, asked)
        self._check_scopes(caller, ask, row)
        if ask.proof is not None:
            await self._proving.check(row, ask.proof)
        await self._parts.ledger.record(self._claim(caller, ask, row, asked))
        self._remember(ask, row)
        return Lease(row)

    # --- rows -------------------------------------------------------------------------

    async def _row(self, caller: Caller, ask: Ask, *, cached: bool) -> LeaseRow | None:
        known = self._rows.get(_key(caller, ask)) if cached else None
        if known is not None and self._is_fresh(known, ask):
            return known
        rows = self._parts.lease_rows
        if ask.names is not None:
            it = ask.names
            return await rows.load_by_names(caller.tenant, it.integration, it.subject, it.label)
        assert ask.connection_id is not None
        return await rows.load(caller.tenant, ask.connection_id)

    def _remember(self, ask: Ask, row: LeaseRow) -> None:
        if len(self._rows) >= _MOST_CACHED:
            self._rows.clear()
        if ask.names is not None:
            self._rows[(row.tenant, row.integration, row.subject, row.label)] = row
        else:
            self._rows[(row.tenant, row.connection_id)] = row

    def _forget(self, caller: Caller, ask: Ask) -> None:
        self._rows.pop(_key(caller, ask), None)
        self._parts.authenticator.forget(caller)

    # --- freshness --------------------------------------------------------------------

    async def _fresh(self, ask: Ask, row: LeaseRow, asked: Asked) -> LeaseRow:
        """The row, or a newer one. Whatever a refresh does, a token that is valid is served."""
        if self._is_fresh(row, ask) or row.state is not State.ACTIVE:
            return row
        freshening = self._parts.freshening
        if self._is_valid(row) and ask.min_ttl is None:
            freshening.ahead(row.tenant, row.connection_id, row.generation, asked)
            return row
        outcome = await freshening.newer(row.tenant, row.connection_id, row.generation, asked, Wish.DUE)
        newest = outcome.row or row
        if self._is_valid(newest) or newest.state is not State.ACTIVE:
            return newest
        raise _why(outcome, newest)

    def _is_fresh(self, row: LeaseRow, ask: Ask) -> bool:
        return row.grant is not None and row.grant.fresh(self._now(), self._margin, ask.min_ttl)

    def _is_valid(self, row: LeaseRow) -> bool:
        return row.grant is not None and row.grant.valid(self._now())

    def _servable(self, row: LeaseRow | None, ask: Ask) -> bool:
        """Can this row be leased as it is, at most with a refresh ahead?"""
        if row is None or not row.leasable or not self._is_valid(row):
            return False
        return ask.min_ttl is None or self._is_fresh(row, ask)

    def _now(self) -> datetime:
        return self._parts.clock.now()

    # --- permits ----------------------------------------------------------------------

    def _check_permit(self, caller: Caller, ask: Ask, row: LeaseRow) -> None:
        verdict = decide(
            caller.permits, integration=row.integration, subject=row.subject, action=Action.TOKEN
        )
        if verdict.reason is Reason.NO_PERMIT:
            raise Failure(Code.NOT_FOUND)
        if not verdict.allowed:
            raise Failure(Code.NOT_PERMITTED, "That needs the action token.")
        if ask.body.scopes:
            self._within_ceiling(caller, row, ask.body.scopes)

    def _check_scopes(self, caller: Caller, ask: Ask, row: LeaseRow) -> None:
        """What was asked must be granted; and all that the token can do must be permitted."""
        assert row.grant is not None
        missing = above(ask.body.scopes or (), row.grant.scopes)
        if missing:
            raise Failure(Code.SCOPE_NOT_GRANTED, connection_id=row.connection_id, scopes=" ".join(missing))
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
            refuse_scopes(above((it for it in scopes if it != offline), verdict.ceiling))

    def _claim(self, caller: Caller, ask: Ask, row: LeaseRow, asked: Asked) -> LeaseClaim:
        assert row.grant is not None
        proof_for = None if ask.proof is None else f"{ask.proof.method} {origin_of(ask.proof.url)}"
        return LeaseClaim(
            tenant=caller.tenant,
            connection_id=row.connection_id,
            connection_revision=row.connection_revision,
            app_id=caller.app.id,
            app_revision=caller.app.revision,
            generation=row.generation,
            asked=asked,
            scopes=row.grant.scopes,
            at=self._now(),
            proof_for=proof_for,
            signed=ask.signs,
        )


def _check_kind(ask: Ask, row: LeaseRow) -> None:
    """A token whose requests are signed stays here; there is nothing to sign with any other."""
    if row.grant is None:
        return
    signs = row.grant.token_type == OAUTH1
    if signs and not ask.signs:
        raise Failure(Code.SIGNATURE_NEEDED, connection_id=row.connection_id)
    if ask.signs and not signs:
        raise Failure(Code.INVALID_REQUEST, "Its requests are not signed: lease its token.", field="url")


def _key(caller: Caller, ask: Ask) -> _Names | _Id:
    if ask.names is not None:
        return (caller.tenant, ask.names.integration, ask.names.subject, ask.names.label)
    assert ask.connection_id is not None
    return (caller.tenant, ask.connection_id)


def _why(outcome: Outcome, row: LeaseRow) -> Failure:
    failure = outcome.failure or Failure(Code.REFRESH_PENDING, retry_after=1.0)
    if failure.kind is Kind.RECONNECT_NEEDED:  # the store will say so in a moment, with a link
        return Failure(failure.code, connection_id=row.connection_id)
    return Failure(
        failure.code, failure.detail, retry_after=failure.retry_after, connection_id=row.connection_id
    )
