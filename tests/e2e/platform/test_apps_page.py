"""docs/apps.md, followed: its commands and programs run as they are written, against an API over HTTP."""

import asyncio
import os
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from evergrant_server.api.apps.keys import bootstrap_admin
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.ids import TrustedIssuerId, new_id
from evergrant_server.core.workloads.issuer import IssuerKind, TrustedIssuer
from tests.fakes.api import TENANT, Api, running_api
from tests.fakes.http_server import served
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.compose import ROOT
from tests.fakes.ports import free_port
from tests.fakes.providers.oidc_provider import NODE, PACKAGES
from tests.fakes.providers.workload_issuer import new_key, signed

PAGE = (ROOT / "docs/apps.md").read_text(encoding="utf-8")
# certificates need a proxy: tests/e2e/servers/test_mtls.py follows that section
PAGE = re.sub(r"\n## Certificates\n.*?(?=\n## )", "", PAGE, flags=re.DOTALL)
BLOCKS = re.findall(r"^```(sh|python|js)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
GITHUB = "https://token.actions.githubusercontent.com"
FILES = {"python": "app.py", "js": "app.mjs"}


async def follow(api: Api, folder: Path, admin: str) -> str:
    """Run the page's commands in one shell, with its programs beside them; what they printed."""
    app_id = (await api.app_named("report")).id
    created = '$(python -c \'import json; print(json.load(open("created.json"))["key"])\')'
    for kind, text in BLOCKS:
        if kind in FILES:
            (folder / FILES[kind]).write_text(text)
    script = "\n".join(text for kind, text in BLOCKS if kind == "sh")
    # the reader pastes these; by an admin and by the app are two machines there
    script = script.replace("app_…", app_id).replace("evg_key_…", created)
    for command in ("evergrant apps", "evergrant issuers"):
        script = script.replace(command, f"EVERGRANT_API_KEY={admin} {command}")
    (folder / "node_modules").symlink_to(PACKAGES / "node_modules")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EVERGRANT_")}
    paths = [str(Path(sys.executable).parent), str(NODE.parent), kept["PATH"]]
    env = kept | {
        "EVERGRANT_URL": api.parts.settings.public_url,
        "PATH": os.pathsep.join(paths),
        "PYTHONPATH": str(ROOT / "clients/python/src"),
    }
    pipe = asyncio.subprocess.PIPE
    shell = await asyncio.create_subprocess_exec(
        "bash", "-euc", script, cwd=folder, env=env, stdout=pipe, stderr=pipe
    )
    out, err = await asyncio.wait_for(shell.communicate(), PATIENCE_S)
    assert shell.returncode == 0, (out.decode(), err.decode())
    return out.decode()


async def github(api: Api, folder: Path) -> None:
    """The issuer with a key that a worker has read, and a token of a job beside the programs."""
    now, key = api.clock.now(), new_key("one")
    id, public = TrustedIssuerId(new_id("iss")), (key.as_dict(private=False),)
    values: dict[str, Any] = {"tenant": TENANT, "id": id, "created_at": now, "changed_at": now}
    issuer = TrustedIssuer(name="github", kind=IssuerKind.GITHUB_ACTIONS, issuer=GITHUB, **values)
    async with api.worker.write() as tx:
        await tx.trusted_issuers.put(issuer.with_keys(public, now, None), expected=None)
    job = {"repository_id": "74", "repository_owner_id": "65", "ref": "refs/heads/main"}
    times = {"iat": int(now.timestamp()), "exp": int(now.timestamp()) + 300}
    claims = {"iss": GITHUB, "aud": api.parts.settings.public_url, "sub": "repo:a/b:ref:c", **job, **times}
    token = signed({"alg": "ES256", "kid": "one", "typ": "JWT"}, claims, key)
    (folder / "workload.jwt").write_text(token + "\n")


@pytest.mark.soak
async def test_each_way_leads_to_a_lease_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    port = free_port()
    (tmp_path / "app").mkdir()
    async with running_api(tmp_path, public_url=f"http://127.0.0.1:{port}") as api:
        monkeypatch.setattr(api.clock, "now", lambda: datetime.now(UTC))  # the clock of the programs
        admin = await bootstrap_admin(api.store, api.clock, TENANT, api.parts.settings.api_key_lifetime)
        await api.active(await api.integration(), "the-providers-token", subject="alice")
        await api.app_with("report", Action.TOKEN)
        await github(api, tmp_path / "app")
        async with served(api.app, port=port):
            printed = await follow(api, tmp_path / "app", admin)
        assert printed.count("the-providers-token\n") == 5
        issued = await api.records(AuditAction.TOKEN_ISSUED)
        assert [it.detail["method"] for it in issued] == ["private_key_jwt"] * 3 + ["workload_identity"]
        assert len(await api.records(AuditAction.LEASE_ISSUED)) == 5
