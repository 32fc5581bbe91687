"""Trials of `providers try` at a scripted provider, for tests."""

import asyncio
import base64
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx2
import pytest
import yaml

from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import Failure
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.secret import Secret
from evergrant_server.egress import Egress, EgressPolicy
from providers.definition.schema import ProviderSpec
from providers.requests.sender import Sender
from providers.responses.error_mapping import read_revocation
from providers.tools.trial.consent import TrialSetup
from providers.tools.trial.observation import Observation
from providers.tools.trial.receivers import LoopbackListener
from providers.tools.trial.redaction import Redactor
from providers.tools.trial.token_requests import TokenRequests
from providers.tools.trial.trial import Trial, TrialOptions
from providers.tools.trial.vector import TrialVector
from providers.tools.trial.vector_requests import VectorRequests
from providers.tools.vector_shape import shape_problems
from tests.conformance.providers.exchanges import (
    Exchange,
    as_read,
    assert_request,
    assert_tokens,
    raw_reply,
    send,
)
from tests.fakes.patience import PATIENCE_S
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.unit.providers.samples import an_integration, spec_like

SOURCE = "observed with evergrant providers try, 2026-05-01, 0"
Browse = Callable[[str], Any]


@dataclass
class Ended:
    """What one trial left: observations, lines for the user, and the vector's text."""

    steps: dict[str, Observation]
    told: list[str]
    vector_text: str
    failure: Failure | None
    redactor: Redactor

    @property
    def vector(self) -> dict[str, Any]:
        return yaml.safe_load(self.vector_text)

    def shown(self) -> str:
        """Everything that the user or a reader of the vector may see."""
        lines = [line for it in self.steps.values() for line in (*it.saw, *it.definition, *it.differs)]
        lines += [self.redactor.line(self.failure.detail)] if self.failure else []
        return "\n".join(
            [*lines, *(line for line in self.told if "/authorize?" not in line), self.vector_text]
        )


async def visit(url: str) -> None:
    """A browser whose user agrees."""
    async with httpx2.AsyncClient(follow_redirects=True, trust_env=False) as http:
        await http.get(url)


def a_spec(**fields: Any) -> ProviderSpec:
    """A definition whose endpoints are discovered: they may then be on loopback."""
    return spec_like(**({"discovery": True, "revocation_endpoint": None, "refresh_rotates": True} | fields))


def setup_at(server: ScriptedProvider, spec: ProviderSpec, secret: str | None = None) -> TrialSetup:
    urls = {f"{name}_endpoint": server.url(path) for name, path in _PATHS.items()}
    endpoints = Endpoints(issuer=server.issuer, **urls)
    integration = an_integration(spec.name, client_id=server.client_id, endpoints=endpoints)
    secret = secret or server.client_secret
    return TrialSetup(
        spec, integration, Secret(secret), "http://127.0.0.1:0/", Flow.AUTHORIZATION_CODE, ("read",)
    )


_PATHS = {
    "authorization": "authorize",
    "token": "token",
    "revocation": "revoke",
    "introspection": "introspect",
}


async def walked(
    server: ScriptedProvider,
    spec: ProviderSpec | None = None,
    *,
    browse: Browse = visit,
    wait_s: float = PATIENCE_S,
    change: Callable[[TrialSetup], TrialSetup] = lambda setup: setup,
    cancel_at: tuple[str, int] | None = None,
    **options: bool,
) -> Ended:
    """One trial from consent to vector; `cancel_at`: cancelled when so many requests have arrived there."""
    told: list[str] = []
    noted: list[Observation] = []
    tasks: list[asyncio.Task[Any]] = []

    def open_page(url: str) -> bool:
        tasks.append(asyncio.get_running_loop().create_task(browse(url)))
        return True

    redactor, failure = Redactor(), None

    def note(seen: Observation) -> None:
        """As the command prints it at once: by what was learnt until then."""
        saw, definition, differs = (
            [*map(redactor.line, it)] for it in (seen.saw, seen.definition, seen.differs)
        )
        noted.append(Observation(seen.step, saw, definition, differs))

    async with LoopbackListener("http://127.0.0.1:0/callback", open_page, told.append, wait_s) as listener:
        setup = replace(change(setup_at(server, spec or a_spec())), redirect_uri=listener.redirect_uri)
        sender = Sender(Egress(EgressPolicy(allow=(server.allowance,))))
        requests = TokenRequests(setup, sender, redactor, SystemClock())
        trial = Trial(requests, listener, TrialOptions(**options), SystemClock(), told.append, note)
        running = asyncio.create_task(trial.run())
        if cancel_at is not None:
            await server.until(*cancel_at)
            running.cancel()
        try:
            with suppress(asyncio.CancelledError):
                await running
        except Failure as refused:
            failure = refused
    await asyncio.gather(*tasks, return_exceptions=True)
    vector = TrialVector(VectorRequests(setup, {}), requests.seen, redactor, SOURCE)
    return Ended({it.step: it for it in noted}, told, await vector.text(), failure, redactor)


def live(server: ScriptedProvider) -> list[bool]:
    return [family.alive for family in server.families]


async def assert_vector_holds(spec: ProviderSpec, vector: dict[str, Any]) -> None:
    """As the catalogue's own vectors are tested."""
    assert list(shape_problems(spec, vector)) == []
    exchange = Exchange(spec, vector)
    for kind in ("exchange", "refresh", "revoke"):
        expected = exchange.vector[kind]
        async with ScriptedProvider() as server:
            where = expected["request"]["url"].removeprefix("https://").strip("/")
            server.script(raw_reply(expected["reply"]), at=where)
            reply = await send(exchange, kind, server)
            assert_request(server.calls[0], expected["request"])
        if kind == "revoke":
            read_revocation(spec, reply)
        else:
            assert_tokens(exchange.read(reply, refreshing=kind == "refresh"), expected["tokens"])
    for refusal in exchange.vector["refusals"]:
        with pytest.raises(Failure) as raised:
            exchange.read(as_read(refusal["reply"]), refreshing=True)
        assert raised.value.code.value == refusal["code"]


def callback_of(url: str, **params: str) -> str:
    query = dict(pair.split("=", 1) for pair in urlsplit(url).query.split("&"))
    back = query["redirect_uri"].replace("%3A", ":").replace("%2F", "/")
    return f"{back}?{urlencode({'state': query['state'], **params})}"


def with_flow(flow: Flow, server: ScriptedProvider) -> Callable[[TrialSetup], TrialSetup]:
    def change(setup: TrialSetup) -> TrialSetup:
        known = setup.integration.endpoints
        assert known is not None
        endpoints = known.model_copy(update={"device_authorization_endpoint": server.url("device")})
        integration = setup.integration.model_copy(update={"endpoints": endpoints})
        return replace(setup, flow=flow, integration=integration)

    return change


def echoing(server: ScriptedProvider, call: Any) -> bytes:
    """A provider that quotes the whole request in its error, in every way."""
    params = {name: value for name, value in call.params.items() if name != "grant_type"}
    basic = call.headers.get("authorization", "")
    said = " ".join([*params.values(), basic])
    body = {
        "error": f"{next(iter(params.values()), 'x')} Vimes",
        "error_description": f"bad: {said} for sybil@example.org (Sam Vimes, 203.0.113.7)",
        "error_reason": "Vimes, sybil, u-4711 or patrician \x1b[2J",
        "message": f"token {said[:20]}... of 8f14e45f-ceea-467f-a8d8-1b1f0a1b2c3d",
        "errors": [{said: said, "code": 70008}],
        "trace_id": said,
        "login": "sam.vimes",
    }
    return json.dumps(body).encode()


class EchoingProvider(ScriptedProvider):
    """Answers refused requests with all that it was sent, and names its user in every token reply."""

    def _act(self, call: Any) -> tuple[int, dict[str, str], dict[str, Any] | None]:
        code, headers, data = super()._act(call)
        if call.endpoint in ("token", "revoke") and code >= 400:
            header = {"WWW-Authenticate": f'Basic realm="{call.headers.get("authorization", "")}"'}
            return code, headers | header, json.loads(echoing(self, call))
        if call.endpoint == "token" and data is not None:
            names = {"user": {"name": "Sam Vimes", "email": "sybil@example.org", "id": 4711001}}
            quoted = {str(data["access_token"]): "Sam Vimes", "also": data["access_token"]}
            claims = {"iss": "https://a.example", "sub": "u-4711", "preferred_username": "patrician"}
            payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
            return (
                code,
                headers,
                {**data, **names, **quoted, "id_token": f"eyJhbGciOiJub25lIn0.{payload}.c2lnbmF0dXJl"},
            )
        return code, headers, data
