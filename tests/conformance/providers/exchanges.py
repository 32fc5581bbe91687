"""One exchange of a provider: its definition, its vector, and how what was sent is compared with it."""

import base64
import hashlib
import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
from oauthlib.oauth1.rfc5849.utils import parse_authorization_header

from evergrant_server.core.connections.credentials import OAUTH1, ClientKey, TokenPair
from evergrant_server.core.connections.flow import Flow, TokenTarget
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.integrations import Endpoints, Integration
from evergrant_server.core.secret import Secret
from evergrant_server.egress import Egress, EgressPolicy
from providers.definition.parsing import parse_yaml
from providers.definition.schema import ProviderSpec
from providers.definition.templates import client_auth_of, integration_endpoints, params_from_metadata
from providers.oauth1.flow import (
    oauth1_authorization_url,
    oauth1_endpoints,
    read_token_credentials,
    token_credentials_request,
)
from providers.requests.authorization_url import requested_scopes
from providers.requests.client_grants import ClientGrantInput, client_grant_request
from providers.requests.device import read_device_token
from providers.requests.hosts import secret_hosts
from providers.requests.request_format import (
    OAuthClient,
    ProviderAccess,
    access_token_exchange_request,
    code_exchange_request,
    refresh_request,
    revocation_request,
)
from providers.requests.sender import Sender
from providers.responses.error_mapping import read_revocation
from providers.responses.raw_reply import RawReply
from providers.responses.token_response import additional_token_sets, read_tokens
from tests.conformance.providers.agreement import assert_agrees
from tests.fakes.providers.rsa_keys import rsa_key
from tests.fakes.providers.scripted_provider import Call, ScriptedProvider, raw
from tests.unit.providers.samples import NOW, an_integration

VECTORS = Path(__file__).parent / "vectors"
KEY = ClientKey(private=Secret(json.dumps(rsa_key().as_dict(private=True))))
REDIRECT = "https://evergrant.example/oauth/callback/int_1"
SECRETS = {
    "<state>": "state-" + "s" * 37,
    "<verifier>": "verifier-" + "v" * 34,
    "<code>": "a code",
    "<refresh token>": "rt-1",
    "<access token>": "at-1",
    "<new access token>": "at-2",
    "<new refresh token>": "rt-2",
    "<id token>": "id-1",
    "<second access token>": "at-3",
    "<second refresh token>": "rt-3",
}
SENT = httpx2.Request("POST", "https://provider.example/token", data=SECRETS)
_DIGEST = hashlib.sha256(SECRETS["<verifier>"].encode()).digest()
SECRETS["<challenge>"] = base64.urlsafe_b64encode(_DIGEST).rstrip(b"=").decode()


@cache  # several tests read each
def read_vector(name: str) -> dict[str, Any]:
    vector: dict[str, Any] = parse_yaml((VECTORS / f"{name}.yaml").read_text(encoding="utf-8"))
    return vector


def known(value: Any) -> Any:
    """A vector's part with its `<names>` replaced."""
    if isinstance(value, str):
        for name, secret in SECRETS.items():
            value = value.replace(name, secret)
        return value
    if isinstance(value, dict):
        return {name: known(item) for name, item in value.items()}
    return [known(item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True, kw_only=True)
class WalkedAccess(ProviderAccess):
    """Each request goes to a host of `secret_hosts`, which is what a grant pins."""

    exchange: "Exchange"

    def require_host(self, url: str) -> None:
        host = urlsplit(url).path.removeprefix("/").partition("/")[0].lower()  # within the scripted server
        pinned = secret_hosts(self.exchange.spec, self.exchange.integration, self.exchange.params)
        assert host in {it for _, it in pinned}, f"{self.exchange.file}: {host} isn't pinned"


class Exchange:
    """One provider and its vector."""

    def __init__(self, spec: ProviderSpec, vector: dict[str, Any]) -> None:
        self.spec = spec
        self.vector: dict[str, Any] = known(vector)
        self.facts: dict[str, Any] = self.vector.get("facts", {})  # what a callback has brought
        given = self.vector.get("endpoints")
        self.integration: Integration = an_integration(
            spec.name,
            params=self.vector.get("params", {}),
            endpoints=Endpoints(**given) if given else None,
        )
        self.client = OAuthClient("client-1", Secret("s3cret"), client_auth_of(self.spec, self.integration))
        self.scopes = requested_scopes(self.spec, self.integration, self.vector["scopes"])

    @property
    def file(self) -> str:
        return f"vectors/{self.spec.name}.yaml"

    @property
    def speaks_code(self) -> bool:
        return "authorization_code" in self.spec.auth_modes

    @property
    def params(self) -> dict[str, str]:
        return self.integration.params | params_from_metadata(self.spec, self.facts)

    def endpoints(self) -> Endpoints:
        return integration_endpoints(self.spec, self.integration, self.facts)

    def endpoints_at(self, origin: str) -> Endpoints:
        theirs = self.endpoints()
        moved = {
            name: url.replace("https://", f"{origin}/")
            for name, url in theirs.model_dump().items()
            if name.endswith("_endpoint") and url is not None
        }
        return theirs.model_copy(update=moved)

    def read(self, reply: RawReply, *, refreshing: bool) -> TokenSet:
        return read_tokens(self.spec, reply, requested_scopes=self.scopes, refreshing=refreshing, now=NOW)

    def refusal(self, refusal: dict[str, Any]) -> None:
        """Read a vector's refusal as the reply to its request. Raises the Failure that it is read as."""
        reply = replace(as_read(refusal["reply"]), request=SENT)
        match requested_by(refusal):
            case "device":
                read_device_token(self.spec, reply, requested_scopes=self.scopes, now=NOW)
            case "revocation":
                read_revocation(self.spec, reply)
            case at:
                self.read(reply, refreshing=at == "refresh")


def requested_by(refusal: dict[str, Any]) -> str:
    """What the refused request was, if a vector doesn't say: of a code its exchange, else a refresh."""
    return str(refusal.get("at") or ("exchange" if refusal["of"] == "dead_code" else "refresh"))


async def minted(exchange: Exchange, flow: Flow, expected: dict[str, Any]) -> RawReply:
    """The reply to a request as the vector has it; an assertion is compared by what it claims."""
    async with ScriptedProvider() as server:
        where = expected["request"]["url"].removeprefix("https://").strip("/")
        server.script(raw_reply(expected["reply"]), at=where)
        endpoints = exchange.endpoints_at(server.origin)
        asked = ClientGrantInput(exchange.vector["scopes"], TokenTarget(), "sam@acme.example", NOW)
        ours = replace(exchange.client, key=KEY)
        # signed for the provider's own address, not for the loopback server's
        params = exchange.integration.params
        access = WalkedAccess(exchange.spec, exchange.endpoints(), ours, params, exchange=exchange)
        signed = client_grant_request(access, flow, asked)
        request = replace(signed, url=endpoints.token_endpoint)
        sender = Sender(Egress(EgressPolicy(allow=(server.allowance,))))
        reply = await sender.send(replace(access, client=exchange.client), request)
    sent = server.calls[0]
    if "claims" in expected:
        assertion = dict(parse_qsl(sent.body.decode()))["assertion"]
        assert claims_of(assertion) == expected["claims"]
        expected["request"]["form"]["assertion"] = assertion
    assert_request(sent, expected["request"], f"{exchange.file}: grants.{flow}.request")
    return reply


async def oauth1_read(exchange: Exchange, expected: dict[str, Any]) -> TokenSet:
    """The browser's way and the signed exchange as the vector has them, and what its reply brings."""
    spec, temporary = exchange.spec, TokenPair(Secret("tt-1"), Secret("ts-0"))
    page = oauth1_authorization_url(spec, exchange.integration, temporary, exchange.vector["scopes"])
    address, _, query = page.partition("?")
    assert address == expected["authorize"]["url"]
    assert dict(parse_qsl(query, keep_blank_values=True)) == expected["authorize"]["query"]
    there = oauth1_endpoints(spec, exchange.integration)
    assert there.temporary == expected["temporary"]
    async with ScriptedProvider() as server:
        where = expected["request"]["url"].removeprefix("https://").strip("/")
        server.script(raw_reply(expected["reply"]), at=where)
        there_is = exchange.endpoints_at(server.origin)
        access = WalkedAccess(spec, there_is, exchange.client, exchange=exchange)
        request = token_credentials_request(access, there.token, temporary, Secret("verifier-1"), NOW)
        moved = replace(request, url=request.url.replace("https://", f"{server.origin}/"))
        sender = Sender(Egress(EgressPolicy(allow=(server.allowance,))))
        reply = await sender.send(access, moved)
    call = server.calls[0]
    assert {"method": call.method, "url": "https:/" + call.target} == expected["request"]
    said = dict(parse_authorization_header(call.headers["authorization"]))
    known = {"oauth_token": "tt-1", "oauth_verifier": "verifier-1", "oauth_consumer_key": "client-1"}
    assert known.items() <= said.items()
    tokens = read_token_credentials(spec, reply, now=NOW)
    assert (tokens.token_type, TokenPair.from_secret(tokens.access_token).secret.reveal()) == (OAUTH1, "ts-1")
    token = TokenPair.from_secret(tokens.access_token).token  # compared as others are: by the token alone
    return tokens.model_copy(update={"access_token": token, "token_type": "Bearer"})


def claims_of(assertion: str) -> dict[str, Any]:
    """What an assertion says; its times as how long it lives."""
    payload = assertion.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    lives = claims.pop("exp") - claims.pop("iat")
    return {**claims, "lives": lives}


async def send(exchange: Exchange, kind: str, server: ScriptedProvider) -> RawReply:
    sender = Sender(Egress(EgressPolicy(allow=(server.allowance,))))
    spec, endpoints = exchange.spec, exchange.endpoints_at(server.origin)
    access = WalkedAccess(spec, endpoints, exchange.client, exchange.params, exchange=exchange)
    if kind == "exchange":
        code, verifier = Secret(SECRETS["<code>"]), Secret(SECRETS["<verifier>"])
        request = code_exchange_request(access, code=code, verifier=verifier, redirect_uri=REDIRECT)
        return await sender.send(access, request)
    rule = spec.post_token_exchange if kind == "post_exchange" else None
    if kind == "refresh" and spec.refreshes_with_access_token:
        rule = spec.refresh
    if rule is not None:
        if rule.url is not None:
            rule = rule.model_copy(update={"url": rule.url.replace("https://", f"{server.origin}/")})
        own = replace(access, params=exchange.integration.params)
        request = access_token_exchange_request(own, rule, Secret(SECRETS["<access token>"]))
        return await sender.send(own, request)
    if kind == "refresh":
        token = Secret(SECRETS["<refresh token>"])
        return await sender.send(access, refresh_request(access, token, redirect_uri=REDIRECT))
    which = spec.revocation.token if spec.revocation else "refresh_token"
    token = Secret(SECRETS[f"<{which.replace('_', ' ')}>"])
    return await sender.send(access, revocation_request(access, token, which))


def raw_reply(reply: dict[str, Any]) -> Any:
    read = as_read(reply)
    return raw(read.body, read.status, read.headers)


def as_read(reply: dict[str, Any]) -> RawReply:
    """A vector's reply: `json`, or `text` as it came."""
    body = json.dumps(reply["json"]) if "json" in reply else reply.get("text", "")
    headers = {"content-type": "application/json"}
    headers |= {name.lower(): value for name, value in reply.get("headers", {}).items()}
    return RawReply(reply["status"], headers, body.encode())


def assert_request(call: Call, expected: dict[str, Any], where: str = "request") -> None:
    """Nothing in query, form and JSON but what the vector lists; of the headers those that it names."""
    target, _, query = call.target.partition("?")
    content_type = call.headers.get("content-type")
    body: dict[str, Any] = {}
    if content_type == "application/json":
        body = {"json": json.loads(call.body)}
    elif content_type == "application/x-www-form-urlencoded":
        body = {"form": by_name(call.body.decode())}
    elif call.body:
        body = {"text": call.body.decode()}
    headers = {name.lower(): value for name, value in expected.get("headers", {}).items()}
    sent = {name: call.headers[name] for name in (*headers, "authorization") if name in call.headers}
    done = {"method": call.method, "url": "https://" + target.lstrip("/"), "headers": sent, **body}
    said = {**expected, "headers": headers}
    if "?" in expected["url"]:
        done["url"] += f"?{query}"
    else:
        said, done = {"query": {}, **said}, {**done, "query": by_name(query)}
    assert_agrees(where, _without_empty(said), _without_empty(done), names=SECRETS)
    assert call.headers["accept"] == "application/json"


def by_name(encoded: str) -> dict[str, Any]:
    """Parameters by name; a repeated one has a list."""
    values: dict[str, list[str]] = {}
    for name, value in parse_qsl(encoded, keep_blank_values=True):
        values.setdefault(name, []).append(value)
    return {name: several[0] if len(several) == 1 else several for name, several in values.items()}


def _without_empty(request: dict[str, Any]) -> dict[str, Any]:
    """An empty form is none, and so are an empty query and no headers."""
    return {name: part for name, part in request.items() if part or name not in ("form", "query", "headers")}


def assert_further(spec: ProviderSpec, reply: RawReply, expected: dict[str, Any], where: str) -> None:
    """Exactly these token slots came beside the main one; a vector that names none has none."""
    read = additional_token_sets(spec, reply, now=NOW)
    named = known(expected.get("further", {}))
    assert_agrees(f"{where}.further", sorted(named), sorted(read))
    for name, tokens in read.items():
        assert_tokens(tokens, named[name], f"{where}.further.{name}")


def assert_tokens(tokens: TokenSet, expected: dict[str, Any], where: str = "tokens") -> None:
    done = {
        "access_token": tokens.access_token.reveal(),
        "refresh_token": tokens.refresh_token.reveal() if tokens.refresh_token else None,
        "expires_in": tokens.expires_in,
        "scopes": None if tokens.scopes is None else list(tokens.scopes),
        "token_type": tokens.token_type,
        "metadata": tokens.metadata,
    }
    if "id_token" in expected:
        done["id_token"] = tokens.id_token.reveal() if tokens.id_token else None
    if "refresh_expires_in" in expected:
        done["refresh_expires_in"] = tokens.refresh_expires_in
    assert_agrees(where, {"token_type": "Bearer", "metadata": {}, **expected}, done, names=SECRETS)
