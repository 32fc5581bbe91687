"""`evergrant providers try` as a user runs it, against django-oauth-toolkit, with a scripted browser."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
import yaml

from examples.demo.authorization_server import AuthorizationServer
from providers.definition.registry import Registry
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.ports import free_port
from tests.fakes.providers.authorization_server import running_authorization_server
from tests.fakes.providers.oidc_provider import running_oidc_provider
from tests.unit.providers.tools.trials import assert_vector_holds

ROOT = Path(__file__).parents[3]
EVERGRANT = Path(sys.executable).parent / "evergrant"
BROWSER = """
import asyncio, os, sys
from examples.demo.subject import Subject

async def consent():
    async with Subject(os.environ["SUBJECT"], os.environ["SUBJECT_PASSWORD"]) as subject:
        await subject.consent(sys.argv[1], allow=os.environ["SUBJECT_ALLOWS"] == "yes")

asyncio.run(consent())
"""

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AuthorizationServer]:
    async with running_authorization_server(tmp_path_factory.mktemp("server")) as running:
        yield running


class User(NamedTuple):
    """Who runs the command: a client at the server, and a browser with its subject."""

    issuer: str
    client_id: str
    client_secret: str
    redirect_uri: str
    subject: str
    password: str = "any"


async def user_of(server: AuthorizationServer) -> User:
    redirect = f"http://127.0.0.1:{free_port()}/back"
    await server.register(redirect)
    secret, password = server.client_secret, server.password
    return User(server.issuer, server.client_id, secret, redirect, server.user, password)


async def start(user: User, folder: Path, *arguments: str, allows: str = "yes") -> asyncio.subprocess.Process:
    """The command in a terminal session of its own."""
    (folder / "browser.py").write_text(BROWSER)
    (folder / "secret").write_text(f"{user.client_secret}\n")
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{ROOT}:{ROOT / 'clients/python/src'}",
        "BROWSER": f"{sys.executable} {folder / 'browser.py'} %s",
        "SUBJECT": user.subject,
        "SUBJECT_PASSWORD": user.password,
        "SUBJECT_ALLOWS": allows,
        "EVERGRANT_EGRESS_ALLOW": urlsplit(user.issuer).netloc,
    }
    command = [str(EVERGRANT), "providers", "try", "--checkout", str(ROOT), "--issuer", user.issuer]
    client = ["--client-id", user.client_id, "--client-secret-file", "secret"]
    return await asyncio.create_subprocess_exec(
        *command,
        *client,
        *("--redirect-uri", user.redirect_uri, "--scope", "read", *arguments),
        cwd=folder,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    return process.returncode, out.decode(), err.decode()


async def test_a_real_server_is_walked_and_nothing_of_it_is_left(
    server: AuthorizationServer, tmp_path: Path
) -> None:
    process = await start(await user_of(server), tmp_path, "--wrong-secret", "--second-grant")
    status, out, err = await ended(process)
    assert status == 0, err
    for saw in (
        "refresh token (revoked)",
        "read as client_rejected",
        "the other grant of this account lives",
    ):
        assert saw in out, out
    assert (await server.refresh_tokens())[0] == 0
    assert "All grants that were obtained are revoked." in err
    file = tmp_path / "generic.observed.yaml"
    assert file.stat().st_mode & 0o777 == 0o600
    written = file.read_text()
    secrets = await server.secrets()
    assert len(secrets) > 8
    assert [secret for secret in secrets if secret in out + err + written] == []
    assert server.issuer not in written
    await assert_vector_holds(Registry.load().get("generic"), yaml.safe_load(written))


async def test_ctrl_c_while_tokens_are_under_way_revokes_them(
    server: AuthorizationServer, tmp_path: Path
) -> None:
    await server.hold_next("authorization_code")
    process = await start(await user_of(server), tmp_path)
    await eventually(server.held, lambda held: held["holding"])
    os.killpg(process.pid, signal.SIGINT)
    await server.release()
    status, _, err = await ended(process)
    assert status == 130, err
    assert "All grants that were obtained are revoked." in err
    assert (await server.refresh_tokens())[0] == 0


async def test_a_consent_that_is_denied(server: AuthorizationServer, tmp_path: Path) -> None:
    process = await start(await user_of(server), tmp_path, allows="no")
    status, out, err = await ended(process)
    assert (status, out) == (1, "")
    assert "access_denied" in err or "consent_denied" in err
    assert not (tmp_path / "generic.observed.yaml").exists()


async def test_a_pushed_request_a_nonce_and_an_id_token_at_oidc_provider(tmp_path: Path) -> None:
    async with running_oidc_provider() as server:
        redirect = f"http://127.0.0.1:{free_port()}/back"
        client = await server.register(redirect)
        secret = client["client_secret"]
        user = User(server.issuer, client["client_id"], secret, redirect, "havelock-vetinari")
        process = await start(user, tmp_path, "--scope", "openid", "--reuse", "-o", "json")
        status, out, err = await ended(process)
        assert status == 0, err
        assert len(await server.calls("pushed_authorization_request")) == 1
    steps = {it["step"]: it for it in json.loads(out)}
    assert "an id token" in steps["exchange"]["saw"]
    assert "on_reuse would be family_revoked" in steps["second use"]["differs"]
    written = (tmp_path / "generic.observed.yaml").read_text()
    assert "id_token: <id token>" in written
    assert [
        it for it in (secret, "vetinari", client["client_id"], server.issuer) if it in out + written
    ] == []
    await assert_vector_holds(Registry.load().get("generic"), yaml.safe_load(written))
