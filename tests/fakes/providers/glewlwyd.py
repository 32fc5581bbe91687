"""Debian's glewlwyd, an identity server in C: every refusal at its token endpoint is a 400 without a body.

Its refresh tokens work once, and a live one that comes with a wrong secret is ended.
`requirements/debian.sh` unpacks it; its tests are skipped, with the reason, where there is none.
"""

import asyncio
import gzip
import json
import secrets
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, Self

import httpx2

from tests.fakes.mtls.proxies import program, until_open
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.skipped_time import REDIRECT_URI
from tests.fakes.ports import free_port
from tests.fakes.providers.real_servers import RealServer, change_row

_MODULES = {
    "user": "user",
    "user_middleware": "user_middleware",
    "client": "client",
    "user_auth_scheme": "scheme",
    "plugin": "plugin",
}
_RULES = {
    "jwt-type": "sha",
    "jwt-key-size": "256",
    "access-token-duration": 3600,
    "refresh-token-duration": 1_209_600,
    "code-duration": 600,
    "refresh-token-rolling": True,
    "refresh-token-one-use": "always",
    "allow-non-oidc": True,
    "pkce-allowed": True,
    "subject-type": "public",
    "auth-type-code-enabled": True,
    "auth-type-refresh-enabled": True,
    **{f"auth-type-{kind}-enabled": False for kind in ("token", "id-token", "none", "password", "client")},
    "auth-type-device-enabled": False,
}


class Glewlwyd(RealServer):
    """Its administrator's acts go through its REST API, as its console's do."""

    name = "glewlwyd"
    spends_on_wrong_secret = True
    heeds_disabling = False

    def __init__(self, origin: str, database: Path, admin: httpx2.AsyncClient) -> None:
        self._origin, self._database, self._admin = origin, database, admin
        self.issuer = f"{origin}/api/oidc"
        self.client_id, self.client_secret = "evergrant", secrets.token_urlsafe(32)

    @classmethod
    @asynccontextmanager
    async def running(cls, folder: Path) -> AsyncIterator[Self]:
        binary, env = program(cls.name)
        origin = f"http://127.0.0.1:{free_port()}"
        configuration = _configure(Path(binary).parents[1], folder, origin)
        log = folder / "glewlwyd.log"
        with log.open("ab") as output:
            command = [binary, "-c", str(configuration)]
            child = await asyncio.create_subprocess_exec(*command, env=env, stdout=output, stderr=output)
        try:
            await until_open(int(origin.rpartition(":")[2]), child, log)
            async with httpx2.AsyncClient(base_url=origin, trust_env=False, timeout=PATIENCE_S) as admin:
                server = cls(origin, folder / "glewlwyd.db", admin)
                await server._prepare()
                yield server
        finally:
            if child.returncode is None:
                child.terminate()
            await child.wait()

    async def _prepare(self) -> None:
        await _post(self._admin, "auth/", username="admin", password="password")
        await _post(
            self._admin,
            "mod/plugin/",
            module="oidc",
            name="oidc",
            display_name="OpenID Connect",
            parameters={**_RULES, "iss": self.issuer, "key": secrets.token_urlsafe(32)},
        )
        await _post(
            self._admin,
            "scope/",
            name="read",
            display_name="Read",
            description="Read",
            password_required=True,
        )
        await _post(
            self._admin,
            "client/",
            client_id=self.client_id,
            name="Evergrant",
            password=self.client_secret,
            client_secret=self.client_secret,
            confidential=True,
            enabled=True,
            redirect_uri=[REDIRECT_URI],
            authorization_type=["code", "refresh_token"],
            token_endpoint_auth_method=["client_secret_basic"],
        )

    async def consent(self, url: str, user: str) -> str:
        """What its pages' scripts do: log in, grant the scope to the client, and go on."""
        await _post(self._admin, "user/", username=user, password="a-password", scope=["read"], enabled=True)
        async with httpx2.AsyncClient(base_url=self._origin, trust_env=False, timeout=PATIENCE_S) as browser:
            await _post(browser, "auth/", username=user, password="a-password")
            granted = await browser.put(f"/api/auth/grant/{self.client_id}", json={"scope": "read"})
            granted.raise_for_status()
            return (await browser.get(f"{url}&g_continue=1")).headers["location"]

    async def end_grants(self, user: str) -> None:
        change_row(
            self._database, "UPDATE gpo_refresh_token SET gpor_enabled = 0 WHERE gpor_username = ?", user
        )

    async def disable(self, user: str) -> None:
        path = f"/api/user/{user}"
        (await self._admin.put(path, json={"scope": ["read"], "enabled": False})).raise_for_status()


async def _post(client: httpx2.AsyncClient, path: str, **body: Any) -> None:
    reply = await client.post(f"/api/{path}", json=body)
    assert reply.status_code == 200, reply.text


def _configure(prefix: Path, folder: Path, origin: str) -> Path:
    """Make its database and its configuration file."""
    tables = prefix / "share" / "doc" / "glewlwyd" / "database" / "init.sqlite3.sql.gz"
    with closing(sqlite3.connect(folder / "glewlwyd.db")) as database:
        database.executescript(gzip.decompress(tables.read_bytes()).decode())
    settings: dict[str, Any] = {
        "port": int(origin.rpartition(":")[2]),
        "bind_address": "127.0.0.1",
        "external_url": origin,
        "login_url": "login.html",
        "api_prefix": "api",
        "log_mode": "console",
        "log_level": "WARNING",
        "cookie_domain": "127.0.0.1",
        "cookie_secure": 0,
        "session_expiration": 86_400,
        "session_key": "GLEWLWYD",
        "admin_scope": "g_admin",
        "profile_scope": "g_profile",
        "hash_algorithm": "SHA512",
        **{f"{kind}_module_path": str(prefix / "lib" / "glewlwyd" / name) for kind, name in _MODULES.items()},
    }
    lines = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    lines.append(f'database = {{ type = "sqlite3"; path = "{folder / "glewlwyd.db"}"; }};')
    configuration = folder / "glewlwyd.conf"
    configuration.write_text("\n".join(lines), encoding="utf-8")
    return configuration
