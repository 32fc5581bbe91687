"""Certificates of apps through nginx and HAProxy, as deploy/mtls configures them, and `serve --mtls`.

The commands of docs/apps.md are run as they stand there.
"""

import asyncio
import os
import re
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from evergrant import AsyncEvergrant, Evergrant
from evergrant.identity import Certificate

from evergrant_server.access.credentials import parse_app_token
from evergrant_server.api.apps.keys import bootstrap_admin
from evergrant_server.cli.doctor import CheckFailed, mtls
from evergrant_server.core.access import Action
from evergrant_server.crypto.client_certificates import AppCertificate
from evergrant_server.settings import Settings
from tests.fakes.api import TENANT, Api, running_api
from tests.fakes.certificates import Authority, OwnCertificate, loopback_tls
from tests.fakes.http_server import served
from tests.fakes.mtls.apps import client_cert
from tests.fakes.mtls.proxies import program, proxied
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.compose import ROOT
from tests.fakes.platform.warm import WarmProcess
from tests.fakes.ports import free_port

pytestmark = pytest.mark.asyncio(loop_scope="module")  # two servers and two proxies for all of them

APP_NAMES = {"nginx": "report", "haproxy": "sync"}


@dataclass
class World:
    """The plain listener in this process, and each proxy in front of a `serve --mtls` of its own."""

    api: Api
    folder: Path
    admin: str
    url: str
    authorities: Path
    authority: Authority
    proxies: dict[str, str]
    settings: dict[str, Settings]

    @asynccontextmanager
    async def client(self, proxy: str, own: OwnCertificate | None) -> AsyncIterator[httpx2.AsyncClient]:
        """A client of this proxy that presents `own`."""
        context = ssl.create_default_context(cafile=str(self.authorities))
        if own is not None:
            (self.folder / "own.pem").write_text(own.certificate + own.private)
            context.load_cert_chain(self.folder / "own.pem")
        base = self.proxies[proxy]
        async with httpx2.AsyncClient(verify=context, base_url=base, timeout=PATIENCE_S) as http:
            yield http

    async def ask(
        self, proxy: str, own: OwnCertificate | None, headers: dict[str, str] | None = None
    ) -> httpx2.Response:
        app = await self.api.app_named(APP_NAMES[proxy])
        form = {"grant_type": "client_credentials", "client_id": app.id}
        async with self.client(proxy, own) as http:
            return await http.post("/oauth/token", data=form, headers=headers)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("mtls")
    places, environments = _hops(folder)
    async with AsyncExitStack() as stack:
        proxies = {
            name: f"https://127.0.0.1:{await stack.enter_async_context(proxied(name, folder, places))}"
            for name in environments
        }
        api = await stack.enter_async_context(running_api(folder, now=datetime.now(UTC)))
        integration = await api.integration()
        await api.active(integration, "at-1", lifetime=None, subject="alice")
        admin = await bootstrap_admin(api.store, api.clock, TENANT, api.parts.settings.api_key_lifetime)
        authority = Authority("apps of acme")
        for name in APP_NAMES.values():
            await api.app_with(name, Action.TOKEN)
        registered = {"ca": authority.pem, "san_dns": "sync.acme.example"}
        for name in APP_NAMES.values():
            body = {"method": "tls_client_auth", "parameters": registered}
            answer = await api.call("PUT", f"/v1/apps/{name}/credentials/main", admin, json=body)
            assert answer.status_code == 201, answer.text
        settings = {}
        for name, env in environments.items():
            given = {**env, "EVERGRANT_MTLS_URL": proxies[name]}
            await stack.enter_async_context(_listener(folder, name, given))
            settings[name] = Settings(
                data_dir=folder, **{key.removeprefix("EVERGRANT_").lower(): it for key, it in given.items()}
            )
        url = await stack.enter_async_context(served(api.app))
        world = World(api, folder, admin, url, folder / "authorities.pem", authority, proxies, settings)
        for name in proxies:
            await _until_alive(world, name)
        yield world


def _hops(folder: Path) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """The files of both hops: what replaces the places of the examples, and the settings of each listener."""
    loopback_tls(folder)
    server, key = (folder / "authorities.pem").read_text(), (folder / "server-key.pem").read_text()
    (folder / "mtls-server.pem").write_text(server + key)
    (folder / "app-authorities.pem").write_text(Authority("a hint").pem)
    own, proxy = Authority("the hop's server"), Authority("the proxy alone")
    ours, theirs = own.issue("evergrant", dns=("evergrant.internal",)), proxy.issue("haproxy")
    for name, text in {
        "hop-server-ca.pem": own.pem,
        "hop.pem": ours.certificate,
        "hop.key": ours.private,
        "proxy-ca.pem": proxy.pem,
        "mtls-proxy.pem": theirs.certificate + theirs.private,
    }.items():
        (folder / name).write_text(text)
    port, socket = free_port(), folder / "mtls.sock"
    places = {
        "127.0.0.1:8483": f"127.0.0.1:{port}",
        "/run/evergrant/mtls.sock": str(socket),
        "/etc/evergrant/mtls-server.key": str(folder / "server-key.pem"),
        "/etc/evergrant/": f"{folder}/",
    }
    over_socket = {"EVERGRANT_MTLS_HEADER": "nginx", "EVERGRANT_MTLS_SOCKET": str(socket)}
    over_tls = {
        "EVERGRANT_MTLS_HEADER": "rfc9440",
        "EVERGRANT_MTLS_PORT": str(port),
        "EVERGRANT_MTLS_CERTIFICATE": str(folder / "hop.pem"),
        "EVERGRANT_MTLS_KEY": str(folder / "hop.key"),
        "EVERGRANT_MTLS_PROXY_CA": str(folder / "proxy-ca.pem"),
    }
    return places, {"nginx": over_socket, "haproxy": over_tls}


@asynccontextmanager
async def _listener(folder: Path, name: str, env: dict[str, str]) -> AsyncIterator[None]:
    """`serve --mtls` over the folder's store; it asks for Temporal only when a token is due."""
    clean = {key: it for key, it in os.environ.items() if not key.startswith(("EVERGRANT_", "OTEL_"))}
    given = {
        **clean,
        "EVERGRANT_DATA_DIR": str(folder),
        "EVERGRANT_TEMPORAL_ADDRESS": "127.0.0.1:9",
        **env,
    }
    log = folder / f"{name}-listener.log"
    child = await WarmProcess.start(["serve", "--mtls"], given, log, log)
    try:
        yield
    finally:
        child.terminate()
        await child.wait()


async def _until_alive(world: World, name: str) -> None:
    async with asyncio.timeout(PATIENCE_S), world.client(name, None) as http:
        while (await http.get("/livez")).status_code != 200:
            await asyncio.sleep(0.05)


async def test_the_commands_of_the_page_get_a_lease_with_a_bound_token(world: World) -> None:
    page = (ROOT / "docs/apps.md").read_text()
    section = page.partition("\n## Certificates\n")[2].partition("\n## ")[0]
    commands = "\n".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL))
    assert commands.count("openssl ") == 3
    app = await world.api.app_named("report")
    commands = commands.replace("app_…", app.id)
    openssl, env = program("openssl")
    program("curl")
    given = {
        "EVERGRANT_URL": world.url,
        "EVERGRANT_API_KEY": world.admin,
        "EVERGRANT_MTLS_URL": world.proxies["nginx"],
        "CURL_CA_BUNDLE": str(world.authorities),
        "SSL_CERT_FILE": str(world.authorities),
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), str(Path(openssl).parent), env["PATH"])),
        "PYTHONPATH": str(ROOT / "clients/python/src"),
    }
    folder = world.folder / "page"
    folder.mkdir()
    child = await asyncio.create_subprocess_exec(
        "bash", "-euc", commands, cwd=folder, env=env | given,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await child.communicate()
    assert child.returncode == 0, (output, errors)
    assert output.startswith(b"id ")
    assert output.count(b"at-1\n") == 1
    assert b'"access_token": "at-1"' in output


@pytest.mark.parametrize("proxy", ["nginx", "haproxy"])
async def test_a_bound_token_works_with_its_certificate_alone(world: World, proxy: str) -> None:
    own = world.authority.issue(dns=("sync.acme.example",))
    answer = await world.ask(proxy, own)
    assert answer.status_code == 200, answer.text
    headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    lease: dict[str, Any] = {"json": {"integration": "crm", "subject": "alice"}, "headers": headers}
    for _ in range(2):  # from the store, and from memory
        async with world.client(proxy, own) as http:
            assert (await http.post("/v1/lease", **lease)).json()["access_token"] == "at-1"
        async with world.client(proxy, None) as http:
            assert (await http.post("/v1/lease", **lease)).json()["code"] == "certificate_required"
        async with world.client(proxy, world.authority.issue(dns=("sync.acme.example",))) as http:
            assert (await http.post("/v1/lease", **lease)).json()["code"] == "certificate_required"
    async with httpx2.AsyncClient(timeout=PATIENCE_S) as http:
        refused = await http.post(f"{world.url}/v1/lease", **lease)
        assert (refused.status_code, refused.json()["code"]) == (401, "certificate_required")


@pytest.mark.parametrize("proxy", ["nginx", "haproxy"])
async def test_attack_12_what_the_proxy_lets_through_is_judged_again(world: World, proxy: str) -> None:
    for own in (
        Authority("apps of acme").issue(dns=("sync.acme.example",)),
        world.authority.issue(dns=("other.acme.example",)),
    ):
        answer = await world.ask(proxy, own)
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")
    expired = await world.ask(proxy, world.authority.issue(hours=(-2, -1), dns=("sync.acme.example",)))
    assert expired.status_code == {"nginx": 400, "haproxy": 401}[proxy]  # nginx itself looks at the dates


@pytest.mark.parametrize("proxy", ["nginx", "haproxy"])
async def test_attack_11_a_clients_own_header_does_not_pass_the_proxy(world: World, proxy: str) -> None:
    stolen = world.authority.issue(dns=("sync.acme.example",))
    pem = stolen.certificate.replace("\n", "%0A")
    forged = {"Client-Cert": client_cert(stolen), "Ssl-Client-Cert": pem, "Ssl-Client-Verify": "SUCCESS"}
    for own in (None, Authority().issue()):
        answer = await world.ask(proxy, own, forged)
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")


async def test_no_client_but_the_proxy_reaches_a_hop_over_tls(world: World) -> None:
    port = world.settings["haproxy"].mtls_port
    for own in (None, Authority("the proxy alone").issue("haproxy")):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if own is not None:
            (world.folder / "stranger.pem").write_text(own.certificate + own.private)
            context.load_cert_chain(world.folder / "stranger.pem")
        async with httpx2.AsyncClient(verify=context, timeout=PATIENCE_S) as http:
            with pytest.raises((httpx2.TransportError, ssl.SSLError)):
                await http.get(f"https://127.0.0.1:{port}/livez")


@pytest.mark.parametrize("proxy", ["nginx", "haproxy"])
async def test_the_doctor_finds_both_ends_of_the_hop(world: World, proxy: str) -> None:
    settings = world.settings[proxy].__replace__(trusted_ca_file=world.authorities)
    assert settings.mtls_header is not None
    assert settings.mtls_header in await mtls.listener(settings)
    assert "drops a client's own" in await mtls.proxy(settings)
    with pytest.raises(CheckFailed, match="can't be reached"):
        await mtls.proxy(settings.__replace__(mtls_url=f"https://127.0.0.1:{free_port()}"))


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
async def test_the_client_gets_bound_tokens_and_takes_a_renewed_certificate(world: World, kind: str) -> None:
    file = world.folder / f"{kind}.pem"

    def renew() -> str:
        own = world.authority.issue(dns=("sync.acme.example",))
        file.write_text(own.certificate + own.private)
        return AppCertificate.of_pem(own.certificate).thumbprint

    async def bound_to(token: str) -> str:
        async with world.api.worker.read() as tx:
            found = await tx.tokens.find(parse_app_token(token).id)
        assert found is not None
        assert found.confirmation is not None
        return found.confirmation["x5t#S256"]

    first = renew()
    app = await world.api.app_named("sync")
    said: dict[str, Any] = {
        "identity": Certificate(app.id, file),
        "tls": ssl.create_default_context(cafile=str(world.authorities)),
        "cache_leases_for": timedelta(0),
    }
    url = world.proxies["haproxy"]
    if kind == "blocking":
        with Evergrant(url, **said) as client:
            assert await asyncio.to_thread(client.token, "crm", "alice") == "at-1"
            assert await bound_to(client._tokens.current() or "") == first
            second = renew()
            client._tokens.drop(client._tokens.current() or "")
            assert await asyncio.to_thread(client.token, "crm", "alice") == "at-1"
            assert await bound_to(client._tokens.current() or "") == second
        return
    async with AsyncEvergrant(url, **said) as client:
        assert await client.token("crm", "alice") == "at-1"
        assert await bound_to(client._tokens.current() or "") == first
        second = renew()
        client._tokens.drop(client._tokens.current() or "")
        assert await client.token("crm", "alice") == "at-1"
        assert await bound_to(client._tokens.current() or "") == second
