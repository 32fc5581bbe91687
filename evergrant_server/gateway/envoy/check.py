"""Whether Envoy may send an app's request to a connection's API, and with which credential; asked over HTTP.

Two apps take part. The one that calls needs `proxy`, as at the proxy. Envoy gets the token into its hands, so
it is an app of its own, and needs `token`: without that a caller with `proxy` could ask in Envoy's place.

`ANY /ext_authz/{path}` is Envoy's HTTP service for external authorization, with the path_prefix /ext_authz:
Envoy sends method, path, Host and Authorization of the app's request, and the headers that its configuration
names. 200 lets the request pass, with those headers of the answer that the configuration names.
"""

import re
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from evergrant_server.access.callers import Caller
from evergrant_server.access.judged_request import JudgedRequest
from evergrant_server.access.refusals import LeaseRequest, ProxiedCall
from evergrant_server.core.access import Action
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.gateway.parts import GatewayParts
from evergrant_server.gateway.proxy.headers import NEVER_ASKED, RawHeaders, passed_headers, values_of
from evergrant_server.gateway.proxy.provider_api import ProviderApi
from evergrant_server.gateway.proxy.target import CallerPath, read_caller_path, target_of_call
from evergrant_server.policy import PermitDecision, ProxiedRequest, query_names
from evergrant_server.problems import invalid_request
from evergrant_server.store import LeaseRow
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.traces import trace_of

_CONNECTION = re.compile(r"con_[0-9a-z]{22}\Z")
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_PORTS = {"https": 443, "http": 80}
KEY = "evergrant-envoy-key"
CONNECTION = "evergrant-connection"
# Envoy frames the request, and may not be told to remove these
_FRAMING = frozenset(
    {
        *("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "proxy-connection"),
        *("host", "expect", "content-length", "accept-encoding", "x-forwarded-proto"),
    }
)
# over HTTP the gateway doesn't see what the app sent: these go whether or not it did
_ALWAYS = frozenset({KEY, CONNECTION, *(name.decode() for name in NEVER_ASKED)})
PREFIX = b"/ext_authz/"
_REMOVE = "x-envoy-auth-headers-to-remove"


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
            metrics.record_envoy_check(outcome, time.monotonic() - began)

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
            overrides = await parts.apis.method_overrides(row)
            return path.judged(asked.headers, asked.body, overrides)

        async def prepare(row: LeaseRow, decision: PermitDecision) -> None:
            parts.require_accepted(row)
            api = await parts.apis.of(row)
            _require_target(api, asked, path)
            _require_no_approval(decision)
            self._require_holder(envoy, row)
            sending[:] = [api]

        call = ProxiedCall(
            secrets.token_hex(8), path.line, query_names(path.query), judged, prepare, envoy.caller.app.id
        )
        ask = LeaseRequest(ConnectionId(asked.connection), proxied=call)
        lease = await parts.issuer.issue(request, ask, (caller, cached))
        injected = sending[0].credential(lease.open_access_token(parts.api.ring))
        overrides = sending[0].takes.method_overrides
        return AllowedCall(injected, removed_headers(asked.headers, injected, overrides))

    async def _envoy(self, request: Request, key: str) -> JudgedRequest:
        """Envoy as the store knows it now, never as cached: no ledger looks at it again."""
        own_request = Request({**request.scope, "headers": [(b"authorization", f"Bearer {key}".encode())]})
        try:
            envoy = await self._parts.api.authenticator.authenticate(own_request)
        except Failure as failure:
            if failure.rule.status >= 500:
                raise
            why = f"Envoy's own key isn't accepted: {failure.code}."
            repair = "Have Envoy send Evergrant-Envoy-Key: the key of an app with the action token."
            raise Failure(ErrorCode.NOT_PERMITTED, why, repair=repair) from None
        self._parts.api.ledger.note_use(envoy.tenant, envoy.credential.id)
        context = trace_of(request).request_context(envoy.by)
        return JudgedRequest(self._parts.api, envoy, context, own_request)

    def _require_holder(self, envoy: JudgedRequest, row: LeaseRow) -> None:
        """Raise Failure NOT_PERMITTED unless Envoy may lease the token, with all of its scopes."""
        decision = envoy.decide(envoy.permit_judge.token_question(row, Action.TOKEN, ()))
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
        demands = (
            permit
            for permit in (decision.permit, *decision.above)
            if permit is not None and permit.call_approval
        )
        name = next(demands).name
        why = f"The permit {name} wants each call approved; here not all of it is known."
        repair = "Send it to the gateway's /v1/proxy/{connection}/{path}, once it is approved."
        raise Failure(ErrorCode.CALL_APPROVAL_REQUIRED, why, repair=repair)


def removed_headers(
    arrived_headers: RawHeaders, injected: RawHeaders, own_overrides: Iterable[str] = ()
) -> list[str]:
    """The app's headers that don't go on: what the proxy refuses, by which the API would take another method,
    and other spellings of the credential's."""
    ours = {name.lower().decode() for name, _ in injected}
    passed = {name.lower() for name, _ in passed_headers(arrived_headers, [name for name, _ in injected])}
    arrived = {name.lower().decode("latin-1") for name, _ in arrived_headers if name.lower() not in passed}
    spellings = {spelling for name in ours for spelling in _spellings(name)}
    overrides = {name.lower() for name in own_overrides}
    removed = (_ALWAYS | arrived | spellings | overrides) - ours - _FRAMING
    return sorted(name for name in removed if not name.startswith(":"))


def _spellings(name: str) -> set[str]:
    """The name with `_` in place of any of its `-`: some servers read them alike."""
    first, *rest = name.split("-")
    return {
        first + "".join(sign + part for sign, part in zip(signs, rest, strict=True))
        for signs in product("-_", repeat=len(rest))
    }


class EnvoyHttpService:
    """Answers Envoy's questions over HTTP."""

    def __init__(self, parts: GatewayParts) -> None:
        self._check = EnvoyCheck(parts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises Failure."""
        request = Request(scope)
        query = scope["query_string"]
        asked = AskedCall(
            key=_one_of(request, KEY),
            connection=_one_of(request, CONNECTION),
            method=scope["method"],
            host=_one_of(request, "host"),
            target=scope["raw_path"][len(PREFIX) - 1 :] + (b"?" + query if query else b""),
            headers=request.headers.raw,
        )
        allowed = await self._check.decide(request, asked)
        answer = Response(headers={"Cache-Control": "no-store", _REMOVE: ",".join(allowed.removed)})
        answer.raw_headers += [(name.lower(), value) for name, value in allowed.headers]
        await answer(scope, receive, send)


def _one_of(request: Request, name: str) -> str:
    """The header, "" when it is absent. Raises Failure INVALID_REQUEST when it came twice."""
    values = request.headers.getlist(name)
    if len(values) > 1:
        raise invalid_request(name, "The header came more than once.")
    return values[0] if values else ""
