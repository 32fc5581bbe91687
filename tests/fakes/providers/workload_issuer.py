"""An issuer of workload tokens on loopback: its metadata, its keys, and tokens of any kind."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from joserfc import jws
from joserfc.jwk import ECKey, RSAKey

from tests.fakes.http_server import served

METADATA = "/.well-known/openid-configuration"
KEYS = "/keys"
BUNDLE = "/bundle"


class WorkloadIssuer:
    """Publishes what `answers` says by path; `requests` are the paths that were asked for."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.keys: list[RSAKey | ECKey] = [new_key("one")]
        self.headers: dict[str, str] = {}
        self.answers: dict[str, Any] = {}
        self.requests: list[str] = []

    @property
    def allowance(self) -> str:
        return self.url.removeprefix("http://")

    def rotate(self, kid: str) -> None:
        """Publish another key, and the old one no more."""
        self.keys = [new_key(kid)]

    def token(self, claims: dict[str, Any], *, key: Any = None, **header: Any) -> str:
        """A token with these claims, by the newest key; a header of None is left out."""
        key = key or self.keys[-1]
        headers = {
            "alg": "ES256" if isinstance(key, ECKey) else "RS256",
            "kid": key.kid,
            "typ": "JWT",
            **header,
        }
        return signed({name: it for name, it in headers.items() if it is not None}, claims, key)

    def published(self, path: str) -> Any:
        if path in self.answers:
            return self.answers[path]
        public = [key.as_dict(private=False) for key in self.keys]
        svid = [{**key, "use": "jwt-svid"} for key in public]
        return {
            METADATA: {"issuer": self.url, "jwks_uri": self.url + KEYS},
            KEYS: {"keys": public},
            BUNDLE: {"keys": svid, "spiffe_refresh_hint": 600},
        }.get(path)

    async def app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.requests.append(scope["path"])
        found = self.published(scope["path"])
        status = found if isinstance(found, int) else 404 if found is None else 200
        headers = [(name.encode(), value.encode()) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        body = b"" if status != 200 else json.dumps(found).encode()
        await send({"type": "http.response.body", "body": body})


def new_key(kid: str) -> ECKey:
    return ECKey.generate_key("P-256", {"kid": kid, "use": "sig"})


def signed(header: dict[str, Any], claims: dict[str, Any], key: Any) -> str:
    registry = jws.JWSRegistry(algorithms=[header["alg"]], strict_check_header=False)
    return jws.serialize_compact(header, json.dumps(claims), key, registry=registry)


@asynccontextmanager
async def running_workload_issuer() -> AsyncIterator[WorkloadIssuer]:
    issuer: list[WorkloadIssuer] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await issuer[0].app(scope, receive, send)

    async with served(app) as url:
        issuer.append(WorkloadIssuer(url))
        yield issuer[0]
