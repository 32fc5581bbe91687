"""Azure Key Vault, scripted after its documentation: get and unwrap of RSA keys, and a managed identity.

Azure's client wants TLS and a host below vault.azure.net: a proxy on loopback leads each CONNECT here.
"""

import base64
import json
import secrets
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from evergrant_server.crypto.key_services.port import ServicePurpose
from tests.fakes.certificates import IS_AUTHORITY, Authority, key_usage
from tests.fakes.key_services import acts
from tests.fakes.key_services.front import Front, Reply, Request, front_of, tunnel_to
from tests.fakes.key_services.world import World

_HOST = "evergrant.vault.azure.net"
_OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
_JSON = {"content-type": "application/json; charset=utf-8"}
_CHALLENGE = 'Bearer authorization="https://login.microsoftonline.com/1", resource="https://vault.azure.net"'
_CODES = {400: "BadParameter", 401: "Unauthorized", 403: "Forbidden", 404: "KeyNotFound", 409: "Conflict"}
_CODES |= {429: "Throttled"}


def refusal(status: int, inner: str | None = None) -> Reply:
    error: dict[str, Any] = {"code": _CODES.get(status, "InternalError"), "message": f"a scripted {status}"}
    if inner is not None:
        error["innererror"] = {"code": inner}
    return Reply(status, json.dumps({"error": error}).encode(), _JSON)


class AzureWorld(World):
    BACKEND = acts.AZURE

    _vault: Front
    _identity: Front

    def __init__(self) -> None:
        self._private = {
            f"evergrant-{purpose}": rsa.generate_private_key(65537, 2048) for purpose in ServicePurpose
        }
        self._version = secrets.token_hex(16)
        self._refusal: Reply | None = None
        self._token = secrets.token_urlsafe(16)
        self.url = f"azure:https://{_HOST}/keys/evergrant-{{purpose}}"
        self.secrets = (self._token,)

    @classmethod
    @asynccontextmanager
    async def running(cls, folder: Path) -> AsyncIterator[Self]:
        # as strict clients want it: Python 3.13's refuse an authority that doesn't say what its key is for
        world, authority = cls(), Authority(extensions=(*IS_AUTHORITY, key_usage("key_cert_sign")))
        server = authority.issue(_HOST, dns=(_HOST,))
        for name, text in {"ca": authority.pem, "crt": server.certificate, "key": server.private}.items():
            (folder / f"vault.{name}").write_text(text)
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(folder / "vault.crt", folder / "vault.key")
        async with (
            front_of(respond=world.respond, tls=tls) as world._vault,
            front_of(respond=world.respond_with_token) as world._identity,
            tunnel_to(world._vault.port) as proxy,
        ):
            world.environment = {
                "HTTPS_PROXY": proxy,
                "NO_PROXY": "127.0.0.1",
                "REQUESTS_CA_BUNDLE": str(folder / "vault.ca"),
                "IDENTITY_ENDPOINT": f"{world._identity.url}/msi/token",
                "IDENTITY_HEADER": "header",
            }
            yield world

    def respond_with_token(self, request: Request) -> Reply:
        """As App Service hands tokens of a managed identity out."""
        token = {
            "access_token": self._token,
            "expires_on": "4102444800",
            "resource": "https://vault.azure.net",
        }
        return Reply(200, json.dumps(token | {"token_type": "Bearer"}).encode(), _JSON)

    def respond(self, request: Request) -> Reply:
        if request.headers.get("authorization") != f"Bearer {self._token}":
            return Reply(401, b"{}", _JSON | {"www-authenticate": _CHALLENGE})
        _, _, name, *rest = request.target.partition("?")[0].split("/")
        private = self._private.get(name)
        version = rest[0] if rest and rest[0] else self._version
        if private is None or version != self._version:
            return refusal(404)
        if request.method == "GET":
            return self._described(name, private)
        if self._refusal is not None:
            return self._refusal
        sealed = base64.urlsafe_b64decode(json.loads(request.body)["value"] + "==")
        try:
            key = private.decrypt(sealed, _OAEP)
        except ValueError:
            return refusal(400)
        return _answer({"kid": self._kid(name), "value": _text(key)})

    def _described(self, name: str, private: rsa.RSAPrivateKey) -> Reply:
        numbers = private.public_key().public_numbers()
        key = {"kid": self._kid(name), "kty": "RSA-HSM", "key_ops": ["wrapKey", "unwrapKey"]}
        key |= {"n": _text(numbers.n.to_bytes(256)), "e": _text(numbers.e.to_bytes(3))}
        return _answer({"key": key, "attributes": {"enabled": self._refusal is None}})

    def _kid(self, name: str) -> str:
        return f"https://{_HOST}/keys/{name}/{self._version}"

    @asynccontextmanager
    async def closed(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        with self._vault.closed():
            yield

    @asynccontextmanager
    async def silent(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        with self._vault.silent():
            yield

    @asynccontextmanager
    async def failing(self, purpose: ServicePurpose, status: str) -> AsyncIterator[None]:
        reply = refusal(int(status))
        challenge = {"www-authenticate": _CHALLENGE} if reply.status == 401 else {}
        with self._vault.answers(Reply(reply.status, reply.body, reply.headers | challenge)):
            yield

    @asynccontextmanager
    async def disabled(self, purpose: ServicePurpose, code: str) -> AsyncIterator[None]:
        """Azure still gives the public key, and refuses only to unwrap."""
        self._refusal = refusal(403, code)
        try:
            yield
        finally:
            self._refusal = None

    @asynccontextmanager
    async def without_token(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        """The process has no identity."""
        with self._identity.answers(Reply(400, b"{}", _JSON)):
            yield


def _answer(content: dict[str, Any]) -> Reply:
    return Reply(200, json.dumps(content).encode(), _JSON)


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
