"""Reads the keys of trusted issuers of workload tokens; the API sends no requests (ADR 0008)."""

import logging

from temporalio import activity

from activities.support.transactions import commit_with_retries
from evergrant_server.core.clock import Clock, seconds_since_boot
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.maintenance import FetchIssuerKeys, IssuerKeysResult
from evergrant_server.core.workloads.issuer import IssuerKind, TrustedIssuer
from evergrant_server.egress import Egress
from evergrant_server.store import Store, Transaction
from evergrant_server.telemetry.alarms import report_broken_authority
from evergrant_server.telemetry.logs import LogEvent, log_event
from providers.events.keys import KeySet, fetch_bundle_keys, fetch_issuer_keys

log = logging.getLogger("evergrant.activities")

_SCHEDULE_CONTEXT = RequestContext(by="schedule")


class TrustedIssuerActivities:
    def __init__(self, store: Store, egress: Egress, clock: Clock) -> None:
        self._store = store
        self._egress = egress
        self._clock = clock

    @activity.defn(name=jobs.FETCH_ISSUER_KEYS.name)
    async def fetch_keys(self, request: FetchIssuerKeys) -> IssuerKeysResult:
        """Store the keys that the issuer publishes now. If they can't be read, the old ones stay."""
        async with self._store.read() as tx:
            seen = await tx.trusted_issuers.get(request.tenant, request.issuer_id)
        if seen is None:
            return IssuerKeysResult(problem="the issuer is gone")
        try:
            published = await self._fetch(seen)
            fetched = IssuerKeysResult(keys=len(published.keys))
        except Failure as failure:
            published = None
            fetched = IssuerKeysResult(problem=failure.detail)
            log_event(
                log,
                logging.WARNING,
                LogEvent.ISSUER_KEYS_UNREAD,
                failure.detail,
                code=failure.code,
                object=seen.id,
            )

        async def store(tx: Transaction) -> None:
            current = await tx.trusted_issuers.get(request.tenant, request.issuer_id)
            if current is None or current.jwks_uri != seen.jwks_uri:
                return  # changed meanwhile, which started another reading
            now = self._clock.now()
            after = (
                current.with_keys(published.keys, now, published.max_age)
                if published is not None
                else current.with_problem(fetched.problem or "", now)
            )
            await tx.trusted_issuers.put(after, expected=current.revision)

        await commit_with_retries(self._store, store)
        return fetched

    async def refresh_due(self, limit_s: float) -> None:
        """Read the keys that are due, for about `limit_s` seconds. The next pass goes on with the others."""
        ends = seconds_since_boot() + limit_s
        async with self._store.read() as tx:
            due = await tx.trusted_issuers.with_due_keys(self._clock.now())
        for issuer in due:
            activity.heartbeat()
            request = FetchIssuerKeys(tenant=issuer.tenant, issuer_id=issuer.id, context=_SCHEDULE_CONTEXT)
            try:
                await self.fetch_keys(request)
            except Failure as failure:
                if failure.code is not ErrorCode.AUTHORITY_BROKEN:
                    raise
                report_broken_authority(failure)  # and on to the next one
            if seconds_since_boot() >= ends:
                return

    async def _fetch(self, issuer: TrustedIssuer) -> KeySet:
        if issuer.kind is IssuerKind.SPIFFE:
            assert issuer.jwks_uri is not None  # a trust domain is put with its bundle
            return await fetch_bundle_keys(self._egress, issuer.jwks_uri)
        return await fetch_issuer_keys(self._egress, issuer.issuer, issuer.jwks_uri)
