"""The secrets of the other flows, for the search in test_canary: a provider that speaks them, and
a connection of each kind.
"""

import base64
import json
import secrets as chance
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import httpx2

from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.binding import challenge_of
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.crypto.keyring import KeyRing, Role
from evergrant_server.store import Store
from examples.demo.evergrant_api import EvergrantApi
from examples.demo.subject import Subject
from examples.demo.waiting import wait_until
from tests.e2e.world import define
from tests.fakes.certificates import OwnCertificate, own_certificate
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.platform.processes import RunningPlatform
from tests.fakes.providers.oauth1_server import OAuth1Server
from tests.fakes.providers.scripted_provider import Call, ScriptedProvider, html

Secrets = dict[str, list[str | bytes]]

_REPLY = {"Content-Type": "application/json"}
_MINTED = ("client_credentials", "urn:ietf:params:oauth:grant-type:token-exchange")


class ManyFlows(ScriptedProvider):
    """Requests are pushed (RFC 9126), tokens bound where a proof comes (RFC 9449), devices and machines
    served, and an access token exchanged for the next one as Meta does."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.pushed: dict[str, dict[str, str]] = {}
        self.device_codes: list[str] = []
        self.given: dict[str, list[str]] = {}  # kind of token -> all of them

    def serve(self) -> None:
        """Say so in the metadata; after it listens."""
        self.metadata |= {
            "pushed_authorization_request_endpoint": self.url("par"),
            "device_authorization_endpoint": self.url("device"),
            "dpop_signing_alg_values_supported": ["ES256"],
        }

    def _act(self, call: Call) -> tuple[int, dict[str, str], dict[str, Any] | None]:
        match call.endpoint, call.params.get("grant_type", ""):
            case "par", _:
                reference = f"urn:x:{chance.token_urlsafe(24)}"
                self.pushed[reference] = call.params
                return 201, _REPLY, {"request_uri": reference, "expires_in": 60}
            case "authorize", _ if call.params.get("request_uri") in self.pushed:
                return 302, {"Location": self._authorize(self.pushed[call.params["request_uri"]])}, None
            case "device", _:
                self.device_codes.append(chance.token_urlsafe(24))
                address = self.url("verify")
                shown = {"user_code": "ABCD-EFGH", "verification_uri": address, "expires_in": 300}
                return 200, _REPLY, {"device_code": self.device_codes[-1], "interval": 1, **shown}
            case "token", _ if "dpop" in call.headers:
                return self._bound(call)
            case "token", grant if grant in _MINTED or grant.endswith(":device_code"):
                issued = "urn:ietf:params:oauth:token-type:access_token"
                return 200, _REPLY, {**self._new("minted"), "issued_token_type": issued}
            case "long", _:
                return 200, _REPLY, self._new("long-lived")
            case _:
                return super()._act(call)

    def _bound(self, call: Call) -> tuple[int, dict[str, str], dict[str, Any] | None]:
        nonce = {"DPoP-Nonce": "the-nonce"}
        if not _claims(call.headers["dpop"]).get("nonce"):
            return 400, _REPLY | nonce, {"error": "use_dpop_nonce"}
        code, data = self._token(call.params)
        return code, _REPLY, data | ({"token_type": "DPoP"} if code == 200 else {})

    def _new(self, kind: str) -> dict[str, Any]:
        token = f"at-{chance.token_urlsafe(24)}"
        self.given.setdefault(kind, []).append(token)
        return {"access_token": token, "token_type": "bearer", "expires_in": 3600}


def _claims(token: str) -> dict[str, Any]:
    return json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))


class OtherLives:
    """A connection of each kind, alive; what it took is in `secrets` afterwards."""

    def __init__(self, platform: RunningPlatform, idp: ManyFlows, old: OAuth1Server) -> None:
        self.platform = platform
        self.idp = idp
        self.old = old
        self.certificate: OwnCertificate = own_certificate()
        self.secrets: Secrets = {}
        self.ids: list[str] = []
        self.answers: list[bytes] = []

    async def live(self) -> None:
        key = await self.platform.app("others", "*", "token", "connect")
        subject_token = f"at-{chance.token_urlsafe(24)}"
        async with self.platform.caller(key) as app, self.platform.client() as admin:
            await self._integrations(admin)
            await self._confirmed(app)
            await self._consented(app, "meta", account="acct-1")
            await self._connected(app, "other", flow="device_code")
            await self._connected(app, "other", flow="client_credentials", label="machine")
            await self._connected(app, "mutual", flow="client_credentials")
            await self._connected(
                app, "other", flow="token_exchange", label="swap", subject_token=subject_token
            )
            answer = await app.post(f"/v1/connections/{self.ids[0]}/refresh", json={})
            assert answer.is_success, answer.text
            await self.idp.until("long")
            for connection in self.ids:
                answer = await app.post(f"/v1/connections/{connection}/token", json={})
                assert answer.is_success, answer.text
            await self._signed(app)
            for connection in self.ids:
                self.answers.append((await app.get(f"/v1/connections/{connection}")).content)
                self.answers.append((await admin.get(f"/v1/connections/{connection}/audit")).content)
            self._known(subject_token)
            self.secrets["proof key"] = [await self._proof_key()]
            for connection in self.ids:
                assert (await app.post(f"/v1/connections/{connection}/revoke", json={})).is_success

    def _known(self, subject_token: str) -> None:
        idp, calls = self.idp, self.idp.calls
        tokens = [token for family in idp.families for token in (family.refresh_token, *family.access_tokens)]
        asked = list(idp.pushed.values())
        self.secrets |= {
            "state that was pushed": [it["state"] for it in asked],
            "pushed request": list(idp.pushed),
            "proof": [it.headers["dpop"] for it in calls if "dpop" in it.headers],
            "code of another flow": [it.params["code"] for it in calls if "code" in it.params],
            "verifier of another flow": [
                it.params["code_verifier"] for it in calls if "code_verifier" in it.params
            ],
            "token of another flow": tokens,
            "device code": list(idp.device_codes),
            "subject token": [subject_token],
            "minted token": list(idp.given["minted"]),
            "long-lived token": list(idp.given["long-lived"]),
            "client secret of another flow": [idp.client_secret],
            "certificate's key": [self.certificate.private, _der(self.certificate.private)],
        }
        assert all(self.secrets.values()), f"never seen: {self.secrets}"
        assert len(self.secrets["proof"]) >= 3, "no nonce was asked for, or nothing refreshed"

    async def _signed(self, app: httpx2.AsyncClient) -> None:
        """OAuth 1.0a: temporary credentials, a verifier, token credentials, and a request of an app's."""
        made, old = await self._begun(app, "old"), self.old
        async with self._subject() as subject:
            page = await subject.consent(made["connect_url"], stop_before=old.url("page"))
            back = old.consent(page.url)
            (temporary,) = old.known.temporary.items()
            await subject.consent(back)
        await self._active(app, made["id"])
        body = {"method": "GET", "url": old.url("api")}
        answer = await app.post(f"/v1/connections/{made['id']}/signatures", json=body)
        assert answer.is_success, answer.text
        refused = await app.post(f"/v1/connections/{made['id']}/token", json={})
        self.answers.append(refused.content)
        token, told = temporary
        ((held, secret),) = old.known.tokens.items()
        self.secrets |= {
            "temporary credentials": [token, told["secret"]],
            "verifier of OAuth 1.0a": dict(parse_qsl(urlsplit(back).query))["oauth_verifier"].split(),
            "token credentials": [held, secret],
            "client secret of OAuth 1.0a": [old.client_secret],
            "signature": [_signature(answer.json()["headers"]["Authorization"])],
        }

    async def _proof_key(self) -> str:
        """The private half, as the database has it sealed."""
        url = f"sqlite:///{self.platform.data / 'evergrant.db'}"
        ring = KeyRing.open(self.platform.key_file, Role.API)
        store = await Store.open(url, ring, SystemClock())
        try:
            async with store.read() as tx:
                key = await tx.proof_keys.get(Tenant("default"), ConnectionId(self.ids[0]))
        finally:
            await store.close()
        assert key is not None
        return json.loads(key.private.reveal())["d"]

    async def _integrations(self, admin: httpx2.AsyncClient) -> None:
        idp = self.idp
        ours = {"client_id": idp.client_id, "client_secret": idp.client_secret}
        generic = {"provider": "generic", "issuer": idp.issuer, "default_scopes": ["read"], **ours}
        document = {
            "name": "meta-like",
            "display_name": "As Meta does",
            "auth_modes": ["authorization_code"],
            "authorization_endpoint": idp.url("authorize"),
            "token_endpoint": idp.url("token"),
            "client_auth": "client_secret_post",
            "callback_metadata_params": ["account"],
            "refresh": _exchange(idp, "none"),
            "post_token_exchange": _exchange(idp, "secret"),
        }
        oauth1 = {
            "name": "of-old",
            "display_name": "Of old",
            "auth_modes": ["oauth1"],
            "authorization_endpoint": self.old.url("page"),
            "token_endpoint": self.old.url("token"),
            "request_token_endpoint": self.old.url("temporary"),
            "oauth1": {"signature_method": "HMAC-SHA1", "realm": "Photos"},
        }
        presented = {"certificate": self.certificate.certificate, "private": self.certificate.private}
        self.old.script(html(), at="page")  # there is a page, as the definition says
        async with EvergrantApi(self.platform.url, self.platform.admin_key) as api:
            for it in (document, oauth1):
                await define(api, it)
        bodies = {
            "bound": {**generic, "dpop": True, "binding": "app"},
            "other": generic,
            "meta": {"provider": "meta-like", **ours},
            "mutual": {
                **generic,
                "client_secret": None,
                "client_auth": "tls_client_auth",
                "client_certificate": presented,
            },
            "old": {
                "provider": "of-old",
                "client_id": self.old.client_id,
                "client_secret": self.old.client_secret,
            },
        }
        for name, body in bodies.items():
            answer = await admin.put(f"/v1/integrations/{name}", json={"binding": "none", **body})
            assert answer.is_success, answer.text

    async def _begun(self, app: httpx2.AsyncClient, integration: str, **more: str) -> dict[str, Any]:
        async def begun() -> dict[str, Any] | None:
            body = {"integration": integration, "subject": "user-2", **more}
            answer = await app.post("/v1/connections", json=body)
            return answer.json() if answer.status_code == 201 else None  # its metadata isn't read yet

        made = await wait_until(begun, f"a connection of {integration}", PATIENCE_S)
        self.ids.append(made["id"])
        return made

    async def _confirmed(self, app: httpx2.AsyncClient) -> None:
        """A consent that the app confirms, with the code that the browser shows."""
        verifier = chance.token_urlsafe(32)
        made = await self._begun(app, "bound", challenge=challenge_of(verifier))
        async with self._subject() as subject:
            landing = await subject.consent(made["connect_url"])
        assert landing.response is not None
        code = landing.response.text.partition('<code class="code">')[2].partition("</code>")[0]
        confirm = {"code": code, "subject": "user-2", "verifier": verifier}
        answer = await app.post(f"/v1/connections/{made['id']}/confirm", json=confirm)
        assert answer.is_success, answer.text
        self.answers.append(answer.content)
        self.secrets |= {"confirm code": [code], "verifier of the app": [verifier]}

    async def _consented(self, app: httpx2.AsyncClient, integration: str, **fact: str) -> None:
        made = await self._begun(app, integration)
        callback = f"{self.platform.url}/oauth/callback/"
        async with self._subject() as subject:
            landing = await subject.consent(made["connect_url"], stop_before=callback)
            there = urlsplit(landing.url)
            query = urlencode([*parse_qsl(there.query), *fact.items()])
            await subject.consent(there._replace(query=query).geturl())
        await self._active(app, made["id"])

    def _subject(self) -> Subject:
        """One whose browser trusts the providers' certificate."""
        assert self.idp.tls is not None
        subject = Subject("", "")
        subject._browser = httpx2.AsyncClient(trust_env=False, verify=self.idp.tls.trust, timeout=PATIENCE_S)
        return subject

    async def _connected(self, app: httpx2.AsyncClient, integration: str, **more: str) -> None:
        await self._active(app, (await self._begun(app, integration, **more))["id"])

    async def _active(self, app: httpx2.AsyncClient, connection: str) -> None:
        await until_state(app, f"/v1/connections/{connection}", "active")


async def until_state(http: httpx2.AsyncClient, connection: str, wanted: str) -> None:
    await eventually(lambda: http.get(connection), lambda it: it.json()["state"] == wanted)


def _der(pem: str) -> bytes:
    return base64.b64decode("".join(line for line in pem.splitlines() if "-" not in line))


def _signature(header: str) -> str:
    return unquote(header.partition('oauth_signature="')[2].partition('"')[0])


def _exchange(idp: ManyFlows, client: str) -> dict[str, Any]:
    exchange = {"kind": "access_token_exchange", "grant_type": "fb_exchange_token", "method": "GET"}
    return {**exchange, "url": idp.url("long"), "client": client}
