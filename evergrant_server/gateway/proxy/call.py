"""One proxied call: decide and record, send, renew the token once where the API refuses it, hand on."""

import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import lru_cache

import httpx2
from starlette.requests import Request

from evergrant_server.access.callers import Caller
from evergrant_server.access.decision import IssuedLease
from evergrant_server.access.judgement import lacks
from evergrant_server.access.refreshes import RefreshKey
from evergrant_server.access.refusals import LeaseRequest, ProxiedCall
from evergrant_server.access.transactions import run_transaction
from evergrant_server.audit.decisions import hash_of, use_call_approval
from evergrant_server.core.agents.calls import AgentCall
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.messages.connection import RefreshReason
from evergrant_server.egress import StreamedResponse
from evergrant_server.gateway.parts import GatewayParts
from evergrant_server.gateway.proxy.caller_body import CallerBody
from evergrant_server.gateway.proxy.echo import EchoFilter, encodings
from evergrant_server.gateway.proxy.headers import RawHeaders, passed_headers, values_of
from evergrant_server.gateway.proxy.outgoing import Outgoing
from evergrant_server.gateway.proxy.provider_api import ProviderApi
from evergrant_server.gateway.proxy.target import ApiTarget
from evergrant_server.gateway.quota_queue import ApiTurn
from evergrant_server.policy import PermitDecision, ProxiedRequest, query_names
from evergrant_server.store import LeaseRow, Transaction
from evergrant_server.telemetry import metrics, traces
from evergrant_server.telemetry.logs import LogEvent, log_event
from evergrant_server.telemetry.traces import trace_of
from providers.responses.challenges import challenged_scopes

log = logging.getLogger("evergrant.gateway")
_UNCOMPRESSED = (b"Accept-Encoding", b"identity")  # the credential is looked for in what comes back
_url_of = lru_cache(1000)(httpx2.URL)


@dataclass
class Sent:
    """A call as it was sent, and what is learned of it for the audit log."""

    id: str
    row: LeaseRow
    place: str  # of its audit record
    filter: EchoFilter
    began: float = field(default_factory=time.monotonic)
    status: int = 0
    received: int = 0  # bytes of the response's body
    ended: str = "cut"


HandOn = Callable[[StreamedResponse, Sent], Awaitable[None]]


class ProxyCall:
    """The call of an authenticated app to one connection's API."""

    def __init__(
        self,
        parts: GatewayParts,
        request: Request,
        caller: tuple[Caller, bool],
        connection_id: ConnectionId,
        outgoing: Outgoing,
        body: CallerBody,
    ) -> None:
        self._parts = parts
        self._request = request
        self._caller = caller
        self.connection_id = connection_id
        self.outgoing = outgoing
        self._body = body
        self._api: ProviderApi | None = None
        self._target: ApiTarget | None = None
        self._passed: RawHeaders = ()  # the caller's headers that go on
        self._approved: str | None = None  # the hash of the call whose approval is used up
        self._context = trace_of(request).request_context(caller[0].by)
        self.provider = "unknown"
        self._turn: ApiTurn | None = None

    @property
    def caller(self) -> Caller:
        return self._caller[0]

    async def answer(self, hand_on: HandOn) -> None:
        """Send the call and hand the API's response on, unless that is about the credential: a token that the
        API refuses is renewed once. Raises Failure."""
        refused = await self._send(hand_on)
        if refused is None:
            return
        await self._renew(refused)
        refused = await self._send(hand_on)
        if refused is not None:
            raise await self._token_refused(refused)

    async def _send(self, hand_on: HandOn) -> LeaseRow | None:
        """Record the call, then send it; record how it ended, with what `hand_on` has set in Sent. All of it
        within its API's limits.

        Returns the row whose token the API refuses.
        """
        with self._parts.limits.turn() as self._turn:
            return await self._send_in_turn(self._turn, hand_on)

    async def _send_in_turn(self, turn: ApiTurn, hand_on: HandOn) -> LeaseRow | None:
        id = secrets.token_hex(8)
        lease = await self._issued(id)
        assert self._api is not None
        assert self._target is not None
        token = lease.open_access_token(self._parts.api.ring)
        sent = Sent(id, lease.row, lease.place, EchoFilter(encodings(token.reveal())))
        framing = self._body.headers()
        headers = [*self._passed, _UNCOMPRESSED, *self._api.credential(token), *framing]
        body = self._body.stream() if framing else None
        method, where = self.outgoing.method, self._target
        try:
            turn.sent()
            with traces.client_span(method, _url_of(where.origin)) as span:
                async with self._parts.transport.send(
                    method, where.origin, where.target, headers, body
                ) as answer:
                    sent.status = answer.status
                    turn.answered(answer.status, answer.headers)
                    span.answered(answer.status)
                    metrics.record_provider_wait(time.monotonic() - sent.began, self.provider)
                    if answer.status == 401:
                        sent.ended = ErrorCode.TOKEN_REFUSED.value
                        return sent.row
                    self._require_scopes(answer, sent.row)
                    await hand_on(answer, sent)
                    return None
        except Failure as failure:
            sent.ended = failure.code.value
            raise
        finally:
            self._record_outcome(sent)

    async def _issued(self, id: str) -> IssuedLease:
        """The lease decision, for the action `proxy`. Its record is committed when this returns (rule 8 of
        docs/architecture.md)."""
        names = query_names(self.outgoing.query)
        proxied = ProxiedCall(id, self.outgoing.line, names, self.judged, self._prepare)
        ask = LeaseRequest(self.connection_id, proxied=proxied)
        return await self._parts.issuer.issue(self._request, ask, self._caller)

    async def judged(self, row: LeaseRow) -> ProxiedRequest:
        """The request as permits judge it, with what its connection's API takes for another method."""
        return self.outgoing.judged(await self._parts.apis.method_overrides(row))

    async def _prepare(self, row: LeaseRow, decision: PermitDecision) -> None:
        """Find where it goes before it is recorded. Raises Failure for a call that can't be sent."""
        self.provider = row.provider
        self._parts.require_accepted(row)
        self._api, self._target = await self.outgoing.target(self._parts.apis, row)
        assert self._turn is not None
        limited = decision.permit, self._api.limits, self.outgoing.method, self._target.target
        await self._turn.take(row, self.caller.app.id, *limited)
        self._passed = passed_headers(self.outgoing.headers(), self._api.credential_names)
        if not decision.needs_call_approval:
            return
        wanted = self.outgoing.call_to_approve(self.caller.app.id, row, self._target, self._passed)
        if wanted is not None:
            await self._use_approval(row, wanted)

    async def _use_approval(self, row: LeaseRow, call: AgentCall) -> None:
        """Use up a person's approval of exactly this call. Raises Failure CALL_APPROVAL_REQUIRED.

        A repetition after a 401 is the same call, unless the renewal has changed where it goes, or with which
        account.
        """
        api = self._parts.api
        context = self._context

        async def use(tx: Transaction) -> str:
            hashed = await hash_of(tx, row.tenant, call)
            if hashed != self._approved:
                await use_call_approval(tx, row.tenant, call, context, api.clock.now())
            return hashed

        self._approved = await run_transaction(api.store, use)

    async def _renew(self, row: LeaseRow) -> None:
        """Have the refused token refreshed, once for its generation. Raises Failure when that didn't help, or
        the request can't be sent again. That of a dead grant isn't sent again either."""
        if row.grant_over:
            raise self._parts.note_refused(row)
        key = RefreshKey(row.tenant, row.connection_id, row.generation, RefreshReason.UNAUTHORIZED)
        await self._parts.refresher.refresh_refused_token(key, self._context)
        newest = await self._parts.api.lease_rows.load(row.tenant, row.connection_id)
        if newest is None or newest.generation <= row.generation:
            raise await self._token_refused(row)
        if not self._body.can_be_sent_again:
            raise Failure(ErrorCode.TOKEN_RENEWED, retry_after=1.0, connection_id=self.connection_id)
        self._caller = self.caller, False

    async def _token_refused(self, row: LeaseRow) -> Failure:
        """The failure, with what a worker has found wrong with the integration's metadata: the API may take
        tokens of another issuer than the pinned one by now (RFC 9728 section 2)."""
        async with self._parts.api.store.read() as tx:
            integration = await tx.integrations.by_name(row.tenant, row.integration)
        failure = Failure(ErrorCode.TOKEN_REFUSED, connection_id=self.connection_id)
        if integration is None or integration.problem is None:
            return failure
        why = f"{failure.detail} The integration {integration.name}: {integration.problem}."
        repair = (
            f"An admin revokes the connections of {integration.name} and puts it again, so that its client "
            f"is registered at the issuer of today: evergrant integrations put {integration.name} …"
        )
        about = {"connection_id": self.connection_id, "integration": integration.name, "repair": repair}
        return Failure(ErrorCode.TOKEN_REFUSED, why, **about)

    def _require_scopes(self, answer: StreamedResponse, row: LeaseRow) -> None:
        """Raise Failure SCOPE_NOT_GRANTED for a 403 that demands scopes which the token lacks (RFC 6750
        section 3.1). Where it lacks none, or none is named, a further consent would bring no other answer."""
        if answer.status != 403 or row.grant is None:
            return
        fields = [value.decode("latin-1") for value in values_of(b"www-authenticate", answer.headers)]
        missing = lacks(row.grant, challenged_scopes(*fields))
        if missing:
            scopes = " ".join(missing)
            raise Failure(ErrorCode.SCOPE_NOT_GRANTED, connection_id=self.connection_id, scopes=scopes)

    def _record_outcome(self, sent: Sent) -> None:
        caller = self.caller
        metrics.count(metrics.PROXIED_CALLS, sent.ended, self.provider)
        detail: dict[str, object] = {
            "app": caller.app.id,
            "call": sent.id,
            "outcome": sent.ended,
            "received": sent.received,
            "ms": round((time.monotonic() - sent.began) * 1000),
        }
        if sent.status:
            detail["status"] = sent.status
        if sent.filter.found:
            detail["echoes"] = sent.filter.found
            self._report_echo()
        self._parts.outcomes.add(
            AuditEntry(
                tenant=caller.tenant,
                at=self._parts.api.clock.now(),
                action=AuditAction.PROXY_ANSWERED,
                object=self.connection_id,
                context=self._context,
                detail=detail,
            )
        )

    def _report_echo(self) -> None:
        metrics.count_echo(self.provider)
        why = f"{self.provider}'s API repeated the credential in a response; it was cut out"
        log_event(log, logging.ERROR, LogEvent.CREDENTIAL_ECHOED, why, object=self.connection_id)
