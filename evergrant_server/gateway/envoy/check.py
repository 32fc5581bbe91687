"""Whether Envoy may send an app's request to a connection's API, and with which credential.

Two apps take part. The one that calls needs `proxy`, as at the proxy. Envoy gets the token into its hands, so
it is an app of its own, and needs `token`: without that a caller with `proxy` could ask in Envoy's place.
"""

import re
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request

from evergrant_server.access.callers import Caller
from evergrant_server.access.judged_request import JudgedRequest
from evergrant_server.access.refusals import LeaseRequest, ProxiedCall, target_of
from evergrant_server.core.access import Action
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.gateway.envoy.headers import removed_headers
from evergrant_server.gateway.parts import GatewayParts
from evergrant_server.gateway.proxy.headers import RawHeaders, values_of
from evergrant_server.gateway.proxy.provider_api import ProviderApi
from evergrant_server.gateway.proxy.target import CallerPath, read_caller_path, target_of_call
from evergrant_server.policy import PermitDecision, ProxiedRequest, query_names
from evergrant_server.store import LeaseRow
from evergrant_server.telemetry import envoy_metrics
from evergrant_server.telemetry.request_ids import trace_of

_CONNECTION = re.compile(r"con_[0-9a-z]{22}\Z")
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True)
class AskedCall:
    """An app's request as Envoy describes it, without its body. `key` is Envoy's own; `target` has path and
    query."""

    key: str
    connection: str
    method: str
    host: str
    target: bytes
    headers: RawHeaders
    empty: bool = False  # it is known that there is no body

    @property
    def body(self) -> bytes | None:
        """None where there may be one. Of other methods only one with a type is read by a server."""
        typed = self.method in _WITH_BODY or values_of(b"content-type", self.headers)
        return None if typed and not self.empty else b""


@dataclass(frozen=True)
class AllowedCall:
    """The headers that Envoy sets, and those that it removes."""

    headers: RawHeaders
    removed: list[str]


class EnvoyCheck:
    """The lease decision for a request that Envoy sends. Its record is committed before the answer leaves."""

    def __init__(self, parts: GatewayParts) -> None:
        self._parts = parts

    async def decide(self, request: Request, asked: AskedCall) -> AllowedCall:
        """`request` authenticates the app. Raises Failure."""
        began, outcome = time.monotonic(), "cut"
        try:
            allowed = await self._decide(request, asked)
            outcome = "allowed"
            return allowed
        except Failure as failure:
            outcome = failure.code.value
            raise
        finally:
            envoy_metrics.record_check(outcome, time.monotonic() - began)

    async def _decide(self, request: Request, asked: AskedCall) -> AllowedCall:
        parts = self._parts
        envoy = await self._envoy(request, asked.key)
        caller, cached = await parts.api.authenticator.authenticate_cached(request)
        if caller.tenant != envoy.caller.tenant:
            raise Failure(ErrorCode.UNAUTHENTICATED, "The app is of another tenant than Envoy.")
        if not _CONNECTION.match(asked.connection):
            why = "The request needs the header Evergrant-Connection, with the connection's id."
            raise Failure(ErrorCode.INVALID_REQUEST, why, field="evergrant-connection")
        path = await self._path(caller, asked)
        sending: list[ProviderApi] = []

        async def judged(row: LeaseRow) -> ProxiedRequest:
            own = await parts.apis.method_overrides(row)
            return path.judged(asked.headers, asked.body, own)

        async def prepare(row: LeaseRow, decision: PermitDecision) -> None:
            api = await parts.apis.of(row)
            _require_target(api, asked, path)
            _require_no_approval(decision)
            self._require_holder(envoy, row)
            sending[:] = [api]

        call = ProxiedCall(
            secrets.token_hex(8), path.line, query_names(path.query), judged, prepare, envoy.caller.app.id
        )
        ask = LeaseRequest(ConnectionId(asked.connection), proxied=call)
        row = await parts.issuer.issue(request, ask, (caller, cached))
        injected = sending[0].credential(row.open_access_token(parts.api.ring))
        own = sending[0].takes.method_overrides
        return AllowedCall(injected, removed_headers(asked.headers, injected, own))

    async def _envoy(self, request: Request, key: str) -> JudgedRequest:
        """Envoy as the store knows it now, never as cached: no ledger looks at it again."""
        own = Request({**request.scope, "headers": [(b"authorization", f"Bearer {key}".encode())]})
        try:
            envoy = await self._parts.api.authenticator.authenticate(own)
        except Failure as failure:
            if failure.rule.status >= 500:
                raise
            why = f"Envoy's own key isn't accepted: {failure.code}."
            repair = "Have Envoy send Evergrant-Envoy-Key: the key of an app with the action token."
            raise Failure(ErrorCode.NOT_PERMITTED, why, repair=repair) from None
        self._parts.api.ledger.note_use(envoy.tenant, envoy.credential.id)
        context = trace_of(request).request_context(envoy.by)
        return JudgedRequest(self._parts.api, envoy, context, own)

    def _require_holder(self, envoy: JudgedRequest, row: LeaseRow) -> None:
        """Raise Failure NOT_PERMITTED unless Envoy may lease the token, with all of its scopes."""
        assert row.grant is not None
        offline = self._parts.api.registry.offline_scope(row.provider)
        scopes = tuple(it for it in row.grant.scopes if it != offline)
        decision = envoy.judge(Action.TOKEN, target_of(row), scopes, scopes)
        if not decision.allowed:
            name = envoy.caller.app.name
            why = f"Envoy holds the token, and its app {name} has no permit with token for it."
            repair = f"Give {name} a permit with the action token for this integration and subject."
            raise Failure(ErrorCode.NOT_PERMITTED, why, repair=repair)
        if decision.permit is not None:
            self._parts.api.ledger.note_use(row.tenant, decision.permit.id)

    async def _path(self, caller: Caller, asked: AskedCall) -> CallerPath:
        """What follows the API's base URL, as permits judge it. `prepare` refuses one elsewhere, when the
        permit has been judged: a caller that may not see the connection learns nothing of its API."""
        row = await self._parts.api.lease_rows.load(caller.tenant, ConnectionId(asked.connection))
        base = b"/"
        if row is not None:
            with suppress(Failure):  # `prepare` raises it again
                base = urlsplit((await self._parts.apis.of(row)).base_url).path.rstrip("/").encode() + b"/"
        whole, _, query = asked.target.partition(b"?")
        return read_caller_path(asked.method, whole.removeprefix(base).removeprefix(b"/"), query)


def _require_target(api: ProviderApi, asked: AskedCall, path: CallerPath) -> None:
    """Raise Failure INVALID_REQUEST unless Envoy calls what the proxy would call."""
    target = target_of_call(api.base_url, path, hidden_slashes=api.takes.encoded_slashes)
    base = urlsplit(api.base_url)
    hosts = {base.netloc, f"{base.hostname}:{base.port or _PORTS[base.scheme]}"}
    if asked.host.lower() not in hosts:
        why = f"Its Host isn't {base.netloc}, where the connection's API is."
        raise Failure(ErrorCode.INVALID_REQUEST, why, field="host")
    if target.target.partition(b"?")[0] != asked.target.partition(b"?")[0]:
        why = f"Its path isn't behind {base.path}, where the connection's API is."
        raise Failure(ErrorCode.INVALID_REQUEST, why, field="path")


def _require_no_approval(decision: PermitDecision) -> None:
    """Of every app that the caller acts under, as at the proxy. Raises Failure CALL_APPROVAL_REQUIRED."""
    if decision.needs_call_approval:
        demands = (it for it in (decision.permit, *decision.above) if it is not None and it.call_approval)
        name = next(demands).name
        why = f"The permit {name} wants each call approved; here not all of it is known."
        repair = "Send it to the gateway's /v1/proxy/{connection}/{path}, once it is approved."
        raise Failure(ErrorCode.CALL_APPROVAL_REQUIRED, why, repair=repair)
