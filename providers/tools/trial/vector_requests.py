"""The requests of a vector: built again by the same code with the vector's own client, and not sent.

So they hold no secret of the trial, in any provider's format.
"""

import hashlib
import json
import re
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2

from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.secret import Secret
from evergrant_server.egress import Egress, EgressPolicy
from providers.definition.schema import ProviderSpec
from providers.definition.schema_base import TemplateParam
from providers.requests.authorization_url import build_authorization_url
from providers.requests.request_format import (
    ProviderAccess,
    ProviderRequest,
    access_token_exchange_request,
    code_exchange_request,
    refresh_request,
    revocation_request,
)
from providers.requests.sender import Sender
from providers.tools.trial.consent import TrialSetup
from providers.tools.trial.redaction import REDACTED, UUID

REDIRECT_URI = "https://evergrant.example/oauth/callback/int_1"
_VERIFIER = "v" * 43
_CHALLENGE = urlsafe_b64encode(hashlib.sha256(_VERIFIER.encode()).digest()).rstrip(b"=").decode()
_HEX_CHALLENGE = hashlib.sha256(_VERIFIER.encode()).hexdigest()
_SAMPLES = (
    "sample",
    "1",
    "sample.example.com",
    "https://sample.example.com",
    "SAMPLE",
    "12345678",
    "sample-1",
)
_HOST = "idp.example"
_HOST_NAME = re.compile(r"[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}")
_PLAIN_SEGMENTS = {"auth", "default", "oauth", "oauth2", "oidc", "realms", "token", "v1.0", "v2.0"}
_ALWAYS_SENT = {
    "accept",
    "accept-encoding",
    "connection",
    "content-length",
    "content-type",
    "host",
    "user-agent",
}


class _Recorder(httpx2.AsyncBaseTransport):
    """Keeps the request, and sends nothing."""

    def __init__(self) -> None:
        self.request: httpx2.Request | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.request = request
        return httpx2.Response(204, request=request)


class VectorRequests:
    """The requests of one setup, with the vector's client and invented parameters.

    `known` is the catalogue's own vector of this provider, if it has one: its parameters are invented.
    Every method raises Failure INVALID_REQUEST for a parameter that no invented value fits.
    """

    def __init__(
        self, setup: TrialSetup, facts: Mapping[str, Any], known: Mapping[str, Any] | None = None
    ) -> None:
        samples = {**(known or {}).get("params", {}), **(known or {}).get("facts", {})}
        self.params = sample_params(setup.spec, setup.integration.params, samples)
        self.facts = sample_params(setup.spec, facts, samples)
        endpoints = setup.integration.endpoints
        self.endpoints = masked_endpoints(endpoints) if endpoints is not None else None
        self._hosts = hosts_of(endpoints) if endpoints is not None else []
        segments = set(urlsplit((endpoints.issuer if endpoints is not None else None) or "").path.split("/"))
        self.tenant_words = sorted(segments - _PLAIN_SEGMENTS - {""})  # in the issuer's path
        self.setup = replace(
            setup,
            integration=setup.integration.__replace__(
                client_id="client-1", params=self.params, endpoints=self.endpoints
            ),
            client_secret=Secret("s3cret") if setup.client_secret is not None else None,
            redirect_uri=REDIRECT_URI,
        )
        self._recorder = _Recorder()
        self._sender = Sender(Egress(EgressPolicy(), wrapper=lambda _: self._recorder))

    def without_tenant(self, text: str) -> str:
        """The text of a vector without what names a tenant at a discovered server, and without UUIDs."""
        for host in self._hosts:
            text = re.sub(rf"(?<![\w-]){re.escape(host)}(?![\w-])", _HOST, text, flags=re.IGNORECASE)
        for word in self.tenant_words:
            text = re.sub(rf"(?<=/){re.escape(word)}(?![\w.-])", REDACTED, text)
        return UUID.sub(REDACTED, text)

    def authorization(self) -> dict[str, Any]:
        setup = self.setup
        url = build_authorization_url(
            setup.spec,
            setup.integration,
            redirect_uri=REDIRECT_URI,
            state=Secret("<state>"),
            verifier=Secret(_VERIFIER),
            scopes=setup.scopes,
        )
        route = setup.spec.authorization_url_fragment_route
        url = url.replace(f"#{route}?", "?") if route else url
        url, _, fragment = url.partition("#")
        address, _, query = url.partition("?")
        written: dict[str, Any] = {"url": address}
        written |= {"fragment": fragment} if fragment else {}
        written |= {"route": route} if route else {}
        pairs = parse_qsl(query, keep_blank_values=True)
        members = {
            name: "<challenge>" if value in (_CHALLENGE, _HEX_CHALLENGE) else value for name, value in pairs
        }
        return written | {"query": members}

    async def exchange(self) -> dict[str, Any]:
        code, verifier = Secret("<code>"), Secret("<verifier>")
        access = self.setup.access(self.facts)
        request = code_exchange_request(access, code=code, verifier=verifier, redirect_uri=REDIRECT_URI)
        return await self._recorded(access, request)

    async def post_exchange(self) -> dict[str, Any]:
        access, rule = self.setup.access(), self.setup.spec.post_token_exchange
        assert rule is not None
        request = access_token_exchange_request(access, rule, Secret("<access token>"))
        return await self._recorded(access, request)

    async def refresh(self) -> dict[str, Any]:
        access, spec = self.setup.access(self.facts), self.setup.spec
        if spec.refreshes_with_access_token:
            request = access_token_exchange_request(access, spec.refresh, Secret("<access token>"))
            return await self._recorded(access, request)
        token, redirect = Secret("<refresh token>"), REDIRECT_URI
        flow = self.setup.flow if self.setup.flow.may_refresh else Flow.AUTHORIZATION_CODE
        request = refresh_request(access, token, redirect_uri=redirect, flow=flow)
        return await self._recorded(access, request)

    async def revocation(self, token: str) -> dict[str, Any]:
        access = self.setup.access(self.facts)
        hint = token.strip("<>").replace(" ", "_")
        return await self._recorded(access, revocation_request(access, Secret(token), hint))

    async def _recorded(self, access: ProviderAccess, request: ProviderRequest) -> dict[str, Any]:
        await self._sender.send(access, request)
        assert self._recorder.request is not None
        return _described(self._recorder.request)


def _described(request: httpx2.Request) -> dict[str, Any]:
    parts = urlsplit(str(request.url))
    written: dict[str, Any] = {
        "method": request.method,
        "url": f"{parts.scheme}://{parts.netloc}{parts.path}",
    }
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    written |= {"query": query} if query else {}
    headers = {name.lower(): value for name, value in request.headers.items()}
    unusual = {name: value for name, value in headers.items() if name not in _ALWAYS_SENT}
    written |= {"headers": unusual} if unusual else {}
    body = request.content.decode()
    if headers.get("content-type") == "application/json":
        written["json"] = json.loads(body)
    elif body:
        written["form"] = dict(parse_qsl(body, keep_blank_values=True))
    return written


def sample_params(spec: ProviderSpec, params: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Invented template parameters, which name no account; one of a list of values stays."""
    rules = spec.template_params
    return {
        name: _sample(rules[name], value, known.get(name)) for name, value in params.items() if name in rules
    }


def _sample(rule: TemplateParam, value: Any, known: Any) -> Any:
    if rule.enum:
        return value
    if known is not None:
        return known
    fitting = (written for sample in _SAMPLES if rule.problem(written := rule.normalised(sample)) is None)
    return next(fitting, rule.default or REDACTED)


def masked_endpoints(endpoints: Endpoints) -> Endpoints:
    """A discovered server's endpoints, at an invented host: their paths may name a tenant."""
    urls: dict[str, Any] = {
        name: f"https://{_HOST}" + ("" if name == "issuer" else f"/{name.removesuffix('_endpoint')}")
        for name, _ in _urls(endpoints)
    }
    return endpoints.__replace__(**(urls | {"mtls_aliases": {}, "registration_endpoint": None}))


def hosts_of(endpoints: Endpoints) -> list[str]:
    """The host names in a server's URLs, the longest first; some name a tenant's domain in their path."""
    parts = [urlsplit(url) for _, url in _urls(endpoints)]
    named = {segment for part in parts for segment in part.path.split("/") if _HOST_NAME.fullmatch(segment)}
    return sorted(named | {part.hostname for part in parts if part.hostname}, key=len, reverse=True)


def _urls(endpoints: Endpoints) -> list[tuple[str, str]]:
    fields = endpoints.model_dump().items()
    return [(name, value) for name, value in fields if isinstance(value, str) and "://" in value]
