"""A whole life with known secrets at LOG_LEVEL=DEBUG, and then a search for them everywhere.

The secrets are the real ones of that life: what the provider issued and was sent, what the API
handed out, what the key file holds.
"""

import asyncio
import base64
import json
import secrets as chance
import shutil
import sqlite3
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
from evergrant.identity import PrivateKey
from evergrant.identity.private_key import new_private_key, public_jwk
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from temporalio.client import Client

from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.events import CONNECTION_EVENTS
from evergrant_server.core.secret import Secret
from evergrant_server.crypto.keyring import KeyRing, Role
from examples.demo.subject import Subject
from examples.demo.waiting import wait_until
from providers.requests.request_format import OAuthClient
from providers.responses.raw_reply import RawReply
from tests.fakes.certificates import loopback_tls
from tests.fakes.events.webhook_receiver import Receiver
from tests.fakes.http_server import served
from tests.fakes.otlp import Received, running_receiver
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.platform.processes import RunningPlatform, running_platform
from tests.fakes.providers.oauth1_server import OAuth1Server
from tests.fakes.providers.scripted_provider import ScriptedProvider, echo, ok
from tests.fakes.temporal import running_temporal
from tests.security.secrets.canaries import decoded, dump, files, forms, hits, keys_of
from tests.security.secrets.canary_flows import ManyFlows, OtherLives, until_state

Secrets = dict[str, list[str | bytes]]
Places = dict[str, Sequence[bytes]]


async def resource(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """What the pipeline reads with its lease."""
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b'{"items": [{"id": "7"}]}'})


@dataclass
class Life:
    """One connection from consent to revocation, and what it leaves behind."""

    platform: RunningPlatform
    idp: ScriptedProvider
    others: OtherLives
    received: Received
    hooks: Receiver
    secrets: Secrets = field(default_factory=dict)
    places: Places = field(default_factory=dict)
    answers: list[bytes] = field(default_factory=list)
    queries: list[bytes] = field(default_factory=list)
    dumps: list[bytes] = field(default_factory=list)

    async def live(self) -> None:
        platform, idp = self.platform, self.idp
        await platform.integration("crm", idp)
        await self._webhook()
        key = await platform.app("pipeline", "crm", "token", "connect")
        idp.script(ok(expires_in=2, id_token=self._id_token()))
        async with platform.caller(key) as app, platform.client() as admin:
            made = (
                await app.post("/v1/connections", json={"integration": "crm", "subject": "user-1"})
            ).json()
            async with Subject("", "") as subject:
                await subject.consent(made["connect_url"])
                cookies = [it.value for it in subject._browser.cookies.jar if it.value]
            connection = f"/v1/connections/{made['id']}"
            await until_state(admin, connection, "active")
            self.dumps += dump(platform.data / "evergrant.db")
            end = datetime.fromisoformat((await admin.get(connection)).json()["expires_at"])
            await asyncio.sleep((end - datetime.now(UTC)).total_seconds() + 0.1)
            await self._trouble(app)
            await self._pipeline(key, made["id"])
            await self._proven()
            await self.others.live()
            await self._look(admin, connection, made["id"])
            self.dumps += dump(platform.data / "evergrant.db")
            idp.script(echo("server_error", 503), at="revoke")
            await admin.post(f"{connection}/revoke", json={})
            await until_state(admin, connection, "revoked")
            await eventually(
                lambda: admin.get(f"{connection}/audit"), lambda it: "history.exported" in it.text
            )
            self.answers.append((await admin.get(f"{connection}/audit")).content)
            await self._told()
            self._known(key, made["connect_url"], cookies)
            await self._gather(admin, made["id"])

    async def _webhook(self) -> None:
        """Subscribed to everything, with a secret that is rotated while the other still signs."""
        events = [it.value for it in CONNECTION_EVENTS]
        async with self.platform.client() as admin:
            made = await admin.put("/v1/webhooks/hooks", json={"url": self.hooks.url, "events": events})
            rotated = await admin.post("/v1/webhooks/hooks/rotate-secret", json={})
        self.webhook_id = made.json()["id"]
        both = [it.json()["secret"].removeprefix("whsec_") for it in (made, rotated)]
        self.secrets["webhook secret"] = [*both, *(base64.b64decode(it) for it in both)]

    async def _told(self) -> None:
        """Until the last event was delivered, with both signatures."""

        async def revoked() -> bool | None:
            return any(b"connection.revoked" in it.body for it in self.hooks.received) or None

        await wait_until(revoked, "the event of the revocation", 30)
        assert all(len(it.headers["webhook-signature"].split()) == 2 for it in self.hooks.received)
        async with self.platform.client() as admin:
            for path in ("/v1/webhooks", "/v1/webhooks/hooks", "/v1/webhooks/hooks/deliveries"):
                self.answers.append((await admin.get(path)).content)

    def _planted(self, kind: str) -> str:
        value = f'{kind} "+/%{chance.token_urlsafe(24)}'
        self.secrets.setdefault(kind, []).append(value)
        return value

    def _id_token(self) -> str:
        """In a JWT's shape; nobody checks its signature at a token endpoint (OpenID Connect 3.1.3.7)."""
        about = {"iss": self.idp.issuer, "aud": self.idp.client_id, "sub": "user-1"}
        claims = _b64(json.dumps({**about, "jti": chance.token_hex(16)}))
        token = f"{_b64(json.dumps({'alg': 'none'}))}.{claims}.{chance.token_urlsafe(24)}".replace("=", "")
        self.secrets["id token"] = [token]
        return token

    async def _trouble(self, app: httpx2.AsyncClient) -> None:
        """Requests that fail with secrets in them, and a provider that echoes what it was sent."""
        await self._refused(app)
        self.idp.script(echo("server_error", 503))
        body = {"integration": "crm", "subject": "user-1", "min_ttl": 5}
        wrong = self._planted("wrong API key").replace('"', "").replace(" ", "")
        bad = self._planted("token in a request")
        calls = [
            app.post("/v1/lease", json=body),
            app.post("/v1/lease", json={**body, "scopes": bad}),
            app.post("/v1/lease", content=f'{{"x": "{wrong}'),
            app.post("/v1/lease", json=body, headers={"Authorization": f"Bearer evg_key_x_{wrong}"}),
            app.get("/oauth/callback/int_none", params={"state": bad, "code": bad}),
            app.get(f"/connect/{wrong.replace('/', '')}"),
        ]
        for answer in await asyncio.gather(*calls):
            assert answer.status_code >= 400 or "access_token" in answer.text, answer.text
            if answer.status_code >= 400:
                self.answers.append(answer.content)
        self.secrets["wrong API key"] = [wrong]
        await eventually(lambda: app.post("/v1/lease", json=body), lambda it: it.status_code == 200)

    async def _refused(self, app: httpx2.AsyncClient) -> None:
        """A code whose refusal quotes it, with the verifier and the client secret."""
        begun = await app.post("/v1/connections", json={"integration": "crm", "subject": "user-2"})
        self.idp.script(echo("invalid_grant"))
        async with Subject("", "") as subject:
            landed = await subject.consent(begun.json()["connect_url"])
        assert landed.response is not None
        self.answers.append(landed.response.content)

    async def _pipeline(self, key: str, connection_id: str) -> None:
        """Somebody else's workflow, in its own worker, takes a lease."""
        platform = self.platform
        async with served(resource) as url:
            env = {"EVERGRANT_URL": platform.url, "EVERGRANT_API_KEY": key}
            at = ("--temporal", platform.temporal)
            await platform.start("pipeline", "examples.pipeline", *at, "worker", **env)
            await platform.until_said("pipeline", "is running")
            order = ["--integration", "crm", "--subject", "user-1", "--connection", connection_id]
            run = ("run", *order, "--resource", url, "--id", "sync")
            await platform.start("sync", "examples.pipeline", *at, *run)
            async with asyncio.timeout(PATIENCE_S):
                status = await platform.children["sync"].wait()
            assert status == 0, platform.log("sync").decode()

    async def _proven(self) -> None:
        """An app that proves who it is: with an assertion that is good, good elsewhere, and used already."""
        platform, private = self.platform, new_private_key()
        await platform.app("prover", "crm", "token")
        body = {"method": "private_key_jwt", "parameters": {"jwks": {"keys": [public_jwk(private)]}}}
        async with platform.client() as admin:
            await admin.put("/v1/apps/prover/credentials/main", json=body)
            app_id = (await admin.get("/v1/apps/prover")).json()["id"]
        good, elsewhere = (
            PrivateKey(app_id, private)(it) for it in (platform.url, "https://elsewhere.example")
        )
        async with httpx2.AsyncClient(base_url=platform.url, trust_env=False, timeout=PATIENCE_S) as http:
            grant = {"grant_type": "client_credentials"}
            sent = [await http.post("/oauth/token", data={**grant, **it}) for it in (good, elsewhere, good)]
        assert [it.status_code for it in sent] == [200, 401, 401]
        token = sent[0].json()["access_token"]
        async with platform.caller(token) as app:
            asked = {"integration": "crm", "subject": "user-1"}
            await eventually(lambda: app.post("/v1/lease", json=asked), lambda it: it.status_code == 200)
        self.answers += [it.content for it in sent[1:]]
        self.secrets["an app's token"] = [token.split("_", 3)[3]]
        self.secrets["an app's assertion"] = [it["client_assertion"] for it in (good, elsewhere)]
        self.secrets["an app's private key"] = [json.loads(private)["d"]]

    async def _look(self, admin: httpx2.AsyncClient, connection: str, connection_id: str) -> None:
        client = await Client.connect(self.platform.temporal)
        handle = client.get_workflow_handle(f"connection:default:{connection_id}")
        described = await handle.describe()
        answers = [await handle.query("describe"), described.raw_description.SerializeToString().hex()]
        self.queries += [json.dumps(it).encode() for it in answers]
        self.queries.append(described.raw_description.SerializeToString())
        shown = ("/v1/audit?limit=100", "/v1/integrations", "/v1/apps/pipeline")
        for path in (connection, f"{connection}/audit", *shown):
            self.answers.append((await admin.get(path)).content)

    def _known(self, key: str, connect_url: str, cookies: list[str]) -> None:
        calls = [call for call in self.idp.calls if call.endpoint == "token"]
        families = self.idp.families
        self.secrets |= {
            "client secret": [self.idp.client_secret],
            "code": [it.params["code"] for it in calls if "code" in it.params],
            "verifier": [it.params["code_verifier"] for it in calls if "code_verifier" in it.params],
            "state": [it.params["state"] for it in self.idp.calls if it.endpoint == "authorize"],
            "access token": [token for family in families for token in family.access_tokens],
            "refresh token": [token for it in families for token in (*it.used, it.refresh_token)],
            "API key": [it.split("_", 3)[3] for it in (key, self.platform.admin_key)],
            "connect link": [connect_url.rpartition("/")[2]],
            "browser cookie": list(cookies),
            "key-file key": keys_of(self.platform.key_file),
        }
        assert all(self.secrets.values()), "a kind of secret was never seen"
        self.secrets |= self.others.secrets
        self.answers += self.others.answers
        assert len(self.secrets["refresh token"]) >= 2, "nothing was rotated"

    async def _gather(self, admin: httpx2.AsyncClient, connection_id: str) -> None:
        platform, client = self.platform, await Client.connect(self.platform.temporal)
        async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
            metrics = [
                (await admin.get("/metrics")).content,
                (await http.get(platform.worker_metrics)).content,
            ]

        async def history(workflow: str) -> list[bytes]:
            found = await client.get_workflow_handle(workflow).fetch_history()
            return list(decoded(found.to_json_dict()))

        histories = await history(f"connection:default:{connection_id}"), await history("sync")
        of_others = [it for id in self.others.ids for it in await history(f"connection:default:{id}")]
        asked = "WorkflowType IN ('push_authorization_request', 'request_temporary_credentials')"
        async for pushed in client.list_workflows(asked):
            of_others += await history(pushed.id)
        of_webhook = await history(f"webhook:default:{self.webhook_id}")
        self.dumps += dump(platform.data / "evergrant.db")
        await platform.stop()  # the exporters send what they hold
        await self.received.until(lambda: any("revoke" in it.name for it in self.received.spans))
        self.places = {
            "logs": [platform.log(name) for name in ("api", "worker", "pipeline", "sync")],
            "traces": [it.SerializeToString() for it in self.received.spans],
            "metrics": metrics + [it.SerializeToString() for it in self.received.metrics],
            "answers and problem documents": self.answers,
            "queries, memo and search attributes": self.queries,
            "history of the connection": histories[0],
            "history of the pipeline": histories[1],
            "history of the webhook": of_webhook,
            "histories of the other flows": of_others,
            "what a receiver was sent": [
                it.body + json.dumps(it.headers).encode() for it in self.hooks.received
            ],
            "database: every table, the file and its log": self.dumps,
            "data folder and journals": list(files(platform.data)),
        }


async def test_no_secret_of_a_whole_life_is_anywhere():
    with tempfile.TemporaryDirectory(prefix="evergrant-") as name:
        folder = Path(name)
        tls = loopback_tls(folder)
        async with (
            ScriptedProvider() as idp,
            ManyFlows(tls=tls) as other_idp,
            OAuth1Server(tls=tls) as old_idp,
            Receiver() as hooks,
            running_receiver() as received,
            running_temporal(folder) as temporal,
        ):
            idp.client_secret = 'cl"/' + chance.token_urlsafe(24)
            other_idp.serve()
            allow = tuple(it.allowance for it in (idp, other_idp, old_idp, hooks))
            env = {
                **received.env,
                "SSL_CERT_FILE": str(tls.authorities),
                "EVERGRANT_SEAL_HISTORIES": "false",  # sealed, a secret in a history would go unnoticed
                "EVERGRANT_LOG_LEVEL": "DEBUG",
                "EVERGRANT_LOG_FORMAT": "json",
            }
            async with running_platform(folder, temporal.address, allow=allow, env=env) as platform:
                life = Life(platform, idp, OtherLives(platform, other_idp, old_idp), received, hooks)
                await life.live()
                await _controls_fire(life, folder)
        for refused in (b"consent.failed", b"grant.refresh_failed", b"connection.revocation_failed"):
            quoted = [it for it in life.answers if refused in it and b"Not [redacted]" in it]
            assert quoted, (
                f"{refused.decode()} quotes no provider: the search for what it quotes proves nothing"
            )
        found = {place: hits(life.secrets, texts) for place, texts in life.places.items()}
        assert all(sum(len(it) for it in texts) > 200 for texts in life.places.values()), "an empty place"
        assert {place: it for place, it in found.items() if it} == {}


async def _controls_fire(life: Life, folder: Path) -> None:
    """The search finds a secret in each kind of place, once it is put there in the place's own way."""
    value = str(life.secrets["access token"][0])
    planted: Secrets = {"access token": [value]}
    for place, texts in life.places.items():
        for form, needle in forms(value).items():
            assert hits(planted, [*texts, b"{" + needle + b"}"]), (place, form)
    payload = {"data": forms(value)["raw"].hex(), "failure": {"message": f"it was {value}"}}
    inner = {"payloads": [{"data": _b64(json.dumps({"token": value}))}]}
    for event in (payload, inner, {"header": {"fields": {"_tracer-data": {"data": _b64(f'"{value}"')}}}}):
        assert hits(planted, list(decoded({"events": [event]}))), event
    copy = folder / "copy.db"
    shutil.copy(life.platform.data / "evergrant.db", copy)
    database = sqlite3.connect(copy)
    database.execute("CREATE TABLE planted (sealed BLOB)")
    database.execute("INSERT INTO planted VALUES (?)", (value.encode(),))
    database.commit()
    database.close()
    assert hits(planted, list(dump(copy)))
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=life.received.endpoint)))
    span = provider.get_tracer("control").start_span(
        "control", attributes={"url.full": f"https://x/?t={value}"}
    )
    await asyncio.to_thread(span.end)
    await life.received.until(lambda: any(it.name == "control" for it in life.received.spans))
    assert hits(planted, [it.SerializeToString() for it in life.received.spans])


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_no_secret_shows_in_reprs_and_tracebacks(tmp_path: Path):
    """Values that hold secrets, printed as a debugger or a traceback with its locals prints them."""
    value = 'canary "+/%' + chance.token_urlsafe(24)
    KeyRing.create(tmp_path / "keys.json")
    held: dict[str, Any] = {
        "secret": Secret(value),
        "client": OAuthClient("id", Secret(value), "client_secret_basic"),
        "reply": RawReply(200, {"set-cookie": value}, value.encode()),
        "tokens": TokenSet(access_token=Secret(value), refresh_token=Secret(value), expires_in=1, scopes=()),
        "ring": KeyRing.open(tmp_path / "keys.json", Role.WORKER),
    }

    def fails(held: dict[str, Any]) -> None:
        raise ValueError(f"{held}")

    try:
        fails(held)
    except ValueError as error:
        shown = traceback.TracebackException.from_exception(error, capture_locals=False)
        with_locals = "".join(f"{name}={it!r} {it}" for name, it in held.items())
        text = "".join(shown.format()) + with_locals
    known: Secrets = {"canary": [value], "key-file key": keys_of(tmp_path / "keys.json")}
    assert hits(known, [text.encode()]) == []
    assert hits(known, [f"{text}{value}".encode()]), "the control"
