"""Google Cloud KMS, scripted after its documentation: encrypt, decrypt and get of keys."""

import base64
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from evergrant_server.crypto.key_services.port import ServicePurpose
from tests.fakes.key_services import acts
from tests.fakes.key_services.front import Front, Reply, Request, front_of
from tests.fakes.key_services.world import World

_RING = "projects/evergrant/locations/europe-west3/keyRings/evergrant"
_STATUSES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND"}
_STATUSES |= {429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}
_ACCOUNT = "worker@evergrant.iam.gserviceaccount.com"
_JSON = {"content-type": "application/json; charset=UTF-8"}


def refusal(code: int, status: str | None = None) -> Reply:
    error = {
        "code": code,
        "message": f"a scripted {code}",
        "status": status or _STATUSES.get(code, "UNKNOWN"),
    }
    return Reply(code, json.dumps({"error": error}).encode(), _JSON)


class GcpWorld(World):
    BACKEND = acts.GCP

    def __init__(self, folder: Path) -> None:
        self._keys = {
            f"{_RING}/cryptoKeys/evergrant-{purpose}": secrets.token_bytes(32) for purpose in ServicePurpose
        }
        self._state = "ENABLED"
        self._account = rsa.generate_private_key(65537, 2048)
        self._credentials = folder / "credentials.json"
        self.environment = {"GOOGLE_APPLICATION_CREDENTIALS": str(self._credentials), "NO_PROXY": "127.0.0.1"}
        self.secrets = ("Bearer ", "PRIVATE KEY")

    @classmethod
    @asynccontextmanager
    async def running(cls, folder: Path) -> AsyncIterator[Self]:
        world = cls(folder)
        async with front_of(respond=world.respond) as front:
            world._front = front
            world._write_credentials()
            path = f"{_RING}/cryptoKeys/evergrant-{{purpose}}"
            world.url = f"gcp-kms:{path}?endpoint={front.url}"
            yield world

    _front: Front

    def _write_credentials(self) -> None:
        """The key of a service account, as Google's console gives it."""
        key = self._account.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        document = {"type": "service_account", "project_id": "evergrant", "private_key": key.decode()}
        document |= {"client_email": _ACCOUNT, "client_id": "1", "token_uri": f"{self._front.url}/token"}
        self._credentials.write_text(json.dumps(document | {"private_key_id": "1"}))

    def _is_signed(self, authorization: str) -> bool:
        """Google's client signs a token itself with the account's key."""
        content, _, signature = authorization.removeprefix("Bearer ").rpartition(".")
        raw = base64.urlsafe_b64decode(signature + "==")
        try:
            self._account.public_key().verify(raw, content.encode(), padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            return False
        return True

    def respond(self, request: Request) -> Reply:
        if not self._is_signed(request.headers.get("authorization", "")):
            return refusal(401)
        name, _, operation = request.target.partition("?")[0].removeprefix("/v1/").partition(":")
        key = self._keys.get(name)
        if key is None:
            return refusal(404)
        if not operation:
            version = {"name": f"{name}/cryptoKeyVersions/1", "state": self._state, "protectionLevel": "HSM"}
            return _answer({"name": name, "purpose": "ENCRYPT_DECRYPT", "primary": version})
        if self._state != "ENABLED":
            return refusal(400, "FAILED_PRECONDITION")
        return _encrypted(key, operation, json.loads(request.body))

    @asynccontextmanager
    async def closed(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        with self._front.closed():
            yield

    @asynccontextmanager
    async def silent(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        with self._front.silent():
            yield

    @asynccontextmanager
    async def failing(self, purpose: ServicePurpose, code: str) -> AsyncIterator[None]:
        with self._front.answers(refusal(int(code))):
            yield

    @asynccontextmanager
    async def in_state(self, purpose: ServicePurpose, state: str) -> AsyncIterator[None]:
        self._state = state
        try:
            yield
        finally:
            self._state = "ENABLED"


def _encrypted(key: bytes, operation: str, body: dict[str, Any]) -> Reply:
    """The answer to `encrypt` or `decrypt`."""
    value = {name: base64.b64decode(text) for name, text in body.items()}
    context = value.get("additionalAuthenticatedData", b"")
    if operation == "encrypt":
        nonce = secrets.token_bytes(12)
        sealed = nonce + AESGCM(key).encrypt(nonce, value["plaintext"], context)
        return _answer({"ciphertext": base64.b64encode(sealed).decode()})
    sealed = value["ciphertext"]
    try:
        plaintext = AESGCM(key).decrypt(sealed[:12], sealed[12:], context)
    except (InvalidTag, ValueError):
        return refusal(400)
    return _answer({"plaintext": base64.b64encode(plaintext).decode()})


def _answer(content: dict[str, Any]) -> Reply:
    return Reply(200, json.dumps(content).encode(), _JSON)
