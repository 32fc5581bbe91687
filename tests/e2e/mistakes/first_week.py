"""The 26 mistakes: how each is made, and what the first screen has to have of its repair."""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from examples.demo.platform import dev_environment
from tests.e2e.mistakes.place import Place, Provider, mistake, screen
from tests.fakes.ports import free_port


@mistake("dev doesn't run, or at another port", "make dev", "EVERGRANT_URL")
async def no_server(place: Place) -> str:
    return await place.say("apps", "ls", env={"EVERGRANT_URL": f"http://127.0.0.1:{free_port()}"})


@mistake("a mistyped API key", "mistyped", "EVERGRANT_API_KEY")
async def mistyped_key(place: Place) -> str:
    key = place.platform.admin_key
    typed = key[:-1] + ("a" if key[-1] != "a" else "b")
    return await place.say("apps", "ls", env={"EVERGRANT_API_KEY": typed})


@mistake("a revoked API key", "was revoked at", "evergrant apps key", quick=False)
async def revoked_key(place: Place) -> str:
    made = await place.admin.post("/v1/apps/first-app/keys")
    await place.say("apps", "keys", "revoke", "first-app", made["id"])
    return await place.say("connections", "ls", env={"EVERGRANT_API_KEY": made["key"]})


@mistake(
    "a server on this machine that isn't allowed",
    r"EVERGRANT_EGRESS_ALLOW=127\.0\.0\.1:\d+,127\.0\.0\.1:\d+ ",
)
async def not_allowed(place: Place) -> str:
    async with Provider() as other:
        secret = await place.secret(other.client_secret)
        return await place.say(
            *("init", "--provider", other.issuer, "--client-id", "x", "--subject", "alice", "--name", "far"),
            *("--client-secret-file", secret),
        )


@mistake("an issuer that names itself otherwise", "names another issuer: http://", quick=False)
async def another_issuer(place: Place) -> str:
    place.idp.metadata["issuer"] = "http://127.0.0.1:9/other"
    try:
        secret = await place.secret("x")
        return await place.say(
            *("init", "--provider", place.idp.issuer, "--client-id", "x", "--subject", "alice"),
            *("--name", "named", "--client-secret-file", secret),
        )
    finally:
        del place.idp.metadata["issuer"]


@mistake("a provider's name with a typing mistake", "evergrant providers ls|did you mean github")
async def mistyped_provider(place: Place) -> str:
    secret = await place.secret("x")
    return await place.say(
        *("init", "--provider", "githb", "--client-id", "x", "--subject", "a", "--client-secret-file", secret)
    )


@mistake("a wrong client secret", "401, invalid_client", "client id and secret", "evergrant integrations get")
async def wrong_secret(place: Place) -> str:
    await place.integration("wrong-secret", client_secret="not-it")
    return await place.connect("wrong-secret", "alice")


@mistake("a client id that the provider's page doesn't know", "integrations get wrong-id", "client id")
async def wrong_id(place: Place) -> str:
    await place.integration("wrong-id", client_id="nobody")
    return await place.say(
        "connect", "wrong-id", "alice", "--wait", "--timeout", "1", "--api-key-file", "first-app.key"
    )


@mistake("a redirect URI that isn't registered", "evergrant integrations redirect-uri crm")
async def wrong_redirect_uri(place: Place) -> str:
    return await place.say(
        *("connect", "crm", "alice", "--label", "uri", "--wait", "--timeout", "1"),
        *("--api-key-file", "first-app.key"),
    )


@mistake(
    *("a scope that the server doesn't know", "invalid_scope", "default scopes"),
    "evergrant integrations get crm",
    quick=False,
)
async def unknown_scope(place: Place) -> str:
    place.idp.refusal = "invalid_scope"
    try:
        return await place.connect("crm", "alice", "--scope", "wrote")
    finally:
        place.idp.refusal = None


@mistake(
    "a scope that the client may not have",
    "access_denied",
    "client_rejected",
    "registration at the provider",
    quick=False,
)
async def forbidden_scope(place: Place) -> str:
    place.idp.refusal = "access_denied"
    try:
        return await place.connect("crm", "alice", "--scope", "write", "--label", "second")
    finally:
        place.idp.refusal = None


@mistake(
    "a scope that the person left out", "not granted: write", "connections reauthorize con_", "--scope write"
)
async def missing_scope(place: Place) -> str:
    place.idp.granted = "read"
    try:
        return await place.connect("crm", "alice", "--scope", "read", "--scope", "write", "--label", "third")
    finally:
        place.idp.granted = None


@mistake(
    "a token before the consent",
    "evergrant connect crm alice --label none --open --wait --api-key-file first-app.key",
)
async def no_consent(place: Place) -> str:
    return await place.say("token", "crm", "alice", "--label", "none", "--api-key-file", "first-app.key")


@mistake("a subject that the app has no permit for", "evergrant apps permit first-app crm --subject bea")
async def no_permit(place: Place) -> str:
    return await place.say("connect", "crm", "bea", "--api-key-file", "first-app.key")


@mistake("the admin's key for a token", "--api-key-file", "admin", quick=False)
async def admin_for_token(place: Place) -> str:
    await place.connect("crm", "alice")
    return await place.say("token", "crm", "alice")


@mistake("a worker that is stopped", "python -m evergrant_server doctor", quick=False)
async def stopped_worker(place: Place) -> str:
    place.idp.lifetime_s = 5  # the token is over when it is leased
    await place.connect("crm", "alice", "--label", "worker")
    os.kill(place.pid("worker"), signal.SIGSTOP)
    try:
        await asyncio.sleep(6)
        return await place.say(
            "token", "crm", "alice", "--label", "worker", "--api-key-file", "first-app.key"
        )
    finally:
        place.idp.lifetime_s = 3600
        os.kill(place.pid("worker"), signal.SIGCONT)


@mistake("the doctor, while Temporal is stopped", "kill -CONT", quick=False)
async def stopped_temporal(place: Place) -> str:
    os.kill(place.pid("temporal"), signal.SIGSTOP)
    try:
        began = time.monotonic()
        said = await place.say("doctor", "--data-dir", str(place.data), server=True)
        return f"{said}(after {time.monotonic() - began:.0f} s)"
    finally:
        os.kill(place.pid("temporal"), signal.SIGCONT)


@mistake("the gateway for a server whose API isn't named", "--api-base-url", quick=False)
async def no_api(place: Place) -> str:
    await place.integration("no-api")
    await place.connect("no-api", "alice")
    env = {"EVERGRANT_API_KEY_FILE": "first-app.key"}
    listed = await place.say("connections", "ls", "--integration", "no-api", "-o", "json", env=env)
    return await place.say(
        "proxy", json.loads(listed)[0]["id"], "GET", "/me", "--api-key-file", "first-app.key"
    )


@mistake("a webhook to this machine", "EVERGRANT_EGRESS_ALLOW=")
async def local_webhook(place: Place) -> str:
    return await place.say("webhooks", "put", "hooks", f"http://localhost:{free_port()}/hooks")


@mistake("an app's clock that is wrong", "ahead of this server's clock", "NTP", quick=False)
async def wrong_clock(place: Place) -> str:
    key = str(place.folder / "app.jwk")
    await place.say("apps", "credentials", "new-key", key)
    await place.say("apps", "credentials", "put", "first-app", "main", "--key", key)
    app = await place.admin.get("/v1/apps/first-app")
    late = "import time; now = time.time; time.time = lambda: now() + 900\nfrom evergrant.cli import main\n"
    command = [sys.executable, "-c", f"{late}main(['connections', 'ls'])"]
    own = {"EVERGRANT_APP_ID": app["id"], "EVERGRANT_PRIVATE_KEY_FILE": key}
    url = {"EVERGRANT_URL": place.platform.api}
    return await screen(command, place.folder, {**place.env, **own, **url})


# --- of who starts it -------------------------------------------------------------------------


async def start(
    place: Place, data: Path, *, env: Mapping[str, str] | None = None, port: int | None = None
) -> str:
    """The screen of a `dev` that can't start."""
    free = {
        name: value for name, value in dev_environment("127.0.0.1:9").items() if name.startswith("EVERGRANT_")
    }
    words = ("dev", "--data-dir", str(data), "--port", str(port or free_port()))
    return await place.say(*words, env={**free, **(env or {})}, server=True)


@mistake(
    "a port that is in use",
    r"start with others: EVERGRANT_PORT=\d+ .*(-m evergrant_server|make) dev",
    quick=False,
)
async def port_in_use(place: Place) -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return await start(place, place.folder / "second", port=listener.getsockname()[1])


@mistake("a second dev with the same data", "runs with .* already", "stop it with Ctrl-C", quick=False)
async def second_dev(place: Place) -> str:
    return await start(place, place.data)


@mistake("another installation's key file", "EVERGRANT_KEY_FILE", "restore that file", quick=False)
async def wrong_key_file(place: Place) -> str:
    data = await _filled(place, "third")
    (data / "keys.json").unlink()
    await place.say("keys", "create", "--data-dir", str(place.folder / "other"), server=True)
    (place.folder / "other/keys.json").rename(data / "keys.json")
    return await start(place, data)


@mistake("a key file that is lost", "Restore the file from its backup", quick=False)
async def lost_key_file(place: Place) -> str:
    data = await _filled(place, "fourth")
    (data / "keys.json").unlink()
    return await start(place, data)


async def _filled(place: Place, name: str) -> Path:
    """A data folder with keys and a database that has an admin."""
    data = place.folder / name
    for words in (("keys", "create"), ("db", "upgrade", "--no-namespace"), ("keys", "bootstrap")):
        await place.say(*words, "--data-dir", str(data), server=True)
    return data


@mistake("a database that is away", "EVERGRANT_DATABASE_URL", quick=False)
async def no_database(place: Place) -> str:
    url = f"postgresql://evergrant@127.0.0.1:{free_port()}/evergrant"
    return await start(place, place.folder / "fifth", env={"EVERGRANT_DATABASE_URL": url})


@mistake("a setting with a typing mistake", "did you mean EVERGRANT_PORT", quick=False)
async def mistyped_setting(place: Place) -> str:
    return await start(place, place.folder / "sixth", env={"EVERGRANT_PROT": "8580"})
