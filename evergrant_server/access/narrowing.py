"""Leases of narrower tokens: for exactly the scopes that they name, where the provider issues such tokens.

A worker gets one by a refresh of the connection's chain that requests fewer scopes (RFC 6749 section 6).
"""

from evergrant_server.access.context import ApiContext, integration_spec
from evergrant_server.access.judged_request import JudgedRequest
from evergrant_server.access.judgement import without_offline
from evergrant_server.access.refreshes import RefreshKey, RefreshWaiter
from evergrant_server.access.refusals import LeaseRequest, refresh_refused
from evergrant_server.audit.lease_ledger import StaleClaim
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.credentials import DPOP_TOKEN_TYPE
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import MOST_NARROWED, Grant, narrowed_slot
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.lifecycle.schedule import NEWEST_RULES, RULES
from evergrant_server.core.messages.connection import RefreshReason
from evergrant_server.policy import scopes_above
from evergrant_server.problems import require_found
from evergrant_server.store import LeaseRow
from providers.definition.schema import ProviderSpec
from providers.definition.schema_response import DownScoping

_MOST_TRIES = 3  # other refreshes of the connection may come first


class NarrowedLeases:
    """Finds or requests the narrower token of a lease."""

    def __init__(self, api: ApiContext, refresher: RefreshWaiter) -> None:
        self._api = api
        self._refresher = refresher
        self._margin = RULES[NEWEST_RULES].margin

    async def row(
        self,
        call: JudgedRequest,
        lease_request: LeaseRequest,
        row: LeaseRow,
        wanted: tuple[str, ...],
        *,
        cached: bool,
    ) -> LeaseRow:
        """The connection's row with a narrower token. Raises StaleClaim where a cached caller would have to
        wait for one, Failure SCOPE_NOT_NARROWED where there is none, or SCOPE_NOT_PERMITTED where a permit
        insists on it."""
        slot, ttl = narrowed_slot(wanted), lease_request.min_ttl
        result = None
        for tries in range(_MOST_TRIES + 1):
            held = await self._api.lease_rows.load_narrowed(row.tenant, row.connection_id, slot)
            if held is None or not held.leasable:
                return held or row
            now, grant = self._api.clock.now(), held.grant
            valid = grant is not None and grant.is_valid(now)
            fresh = grant is not None and grant.is_fresh(now, self._margin, ttl)
            active = held.state is LifecycleState.ACTIVE
            key = RefreshKey(row.tenant, row.connection_id, held.generation, RefreshReason.COMMAND, wanted)
            if valid and (fresh or not active or ttl is None or result is not None):
                self._require_narrowed(lease_request, held, wanted)
                if not fresh and active:
                    self._refresher.start_refresh(key, call.context)
                return held
            if cached:
                raise StaleClaim  # a cached caller starts nothing
            if not active:
                return held
            if result is not None and (result.failure is not None or tries == _MOST_TRIES):
                break
            await self._require_narrowing(call, lease_request, row, slot, wanted)
            result = await self._refresher.wait_for_newer(key, call.context, call.patience_s)
        assert result is not None
        raise refresh_refused(result, row)

    def _excess(self, row: LeaseRow, requested: tuple[str, ...]) -> tuple[str, ...]:
        scopes = row.grant.scopes if row.grant is not None else ()
        return without_offline(self._api.registry, row.provider, scopes_above(scopes, requested))

    def _require_narrowed(self, lease_request: LeaseRequest, held: LeaseRow, wanted: tuple[str, ...]) -> None:
        """Raise the Failure of a token that doesn't have the wanted scopes and no others."""
        assert held.grant is not None
        if self._excess(held, wanted) or scopes_above(wanted, held.grant.scopes):
            why = "The provider was asked for a narrower token, and issued none with exactly these scopes."
            raise self._failure(lease_request, held, wanted, "refresh", why)

    async def _require_narrowing(
        self,
        call: JudgedRequest,
        lease_request: LeaseRequest,
        row: LeaseRow,
        slot: str,
        wanted: tuple[str, ...],
    ) -> None:
        """Raise the Failure of a provider, or a grant, that gives no narrower token, or no further one."""
        now, place = call.now, (row.tenant, row.connection_id)
        async with self._api.store.read() as tx:
            integration = require_found(await tx.integrations.get(row.tenant, row.integration_id))
            spec = await integration_spec(tx, self._api.registry, integration)
            connection = require_found(await tx.connections.get(*place))
            full_until = await tx.narrowed_tokens.full_until(*place, slot, now)
        if not is_narrowable(spec, connection.flow, row.grant):
            known: DownScoping = "unsupported" if spec.down_scoping == "refresh" else spec.down_scoping
            why = f"{spec.display_name} is not known to narrow the tokens of this connection."
            raise self._failure(lease_request, row, wanted, known, why)
        if full_until is not None:
            why = f"The connection has narrower tokens for {MOST_NARROWED} other sets of scopes already."
            failure = self._failure(lease_request, row, wanted, "refresh", why)
            failure.retry_after = max((full_until - now).total_seconds(), 1.0)
            raise failure

    def _failure(
        self,
        lease_request: LeaseRequest,
        row: LeaseRow,
        wanted: tuple[str, ...],
        down_scoping: DownScoping,
        why: str,
    ) -> Failure:
        """A refusal that says what the token could do beyond the request; `exact` asked for it, or a
        permit."""
        code = ErrorCode.SCOPE_NOT_NARROWED if lease_request.exact else ErrorCode.SCOPE_NOT_PERMITTED
        excess = " ".join(self._excess(row, wanted))
        return Failure(code, why, connection_id=row.connection_id, down_scoping=down_scoping, scopes=excess)


def is_narrowable(spec: ProviderSpec | None, flow: Flow, grant: Grant | None) -> bool:
    """True when the provider issues narrower bearer tokens of this grant by a refresh."""
    if spec is None or grant is None:
        return False
    bound = spec.dpop or grant.token_type == DPOP_TOKEN_TYPE
    return grant.refreshable and not bound and spec.narrows_tokens(flow)
