"""docs/guide/getting-started.md, followed: its commands run as written, at a real authorization server.

The reader's browser is a script, to which `$BROWSER` hands the connect link.
"""

import asyncio
import os
import re
import sys
from pathlib import Path

from examples.demo.platform import EvergrantProcess
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.compose import ROOT
from tests.fakes.providers.authorization_server import running_authorization_server

PAGE = (ROOT / "docs/guide/getting-started.md").read_text(encoding="utf-8")
INIT, CONNECT, INTEGRATION, APP, REVOKE = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
CALLBACK = re.compile(r"http://127\.0\.0\.1:\d+/oauth/callback/int_\w+")


class Reader:
    """A shell in a folder with `.venv`, as after `make dev`."""

    def __init__(self, folder: Path, platform: EvergrantProcess) -> None:
        self.folder = folder
        (folder / ".venv").symlink_to(Path(sys.executable).parent.parent)
        (folder / ".evergrant").symlink_to(folder.parent / "data")
        self.link = folder / "link"
        browser = folder / "browser"
        browser.write_text(f'#!/bin/sh\necho "$1" > {self.link}.new && mv {self.link}.new {self.link}\n')
        browser.chmod(0o700)
        settings = folder / "evergrant.env"  # as dev writes it
        settings.write_text(f"EVERGRANT_URL={platform.api}\nEVERGRANT_API_KEY_FILE=.evergrant/admin.key\n")
        settings.chmod(0o600)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EVERGRANT_")}
        self.env = kept | {"BROWSER": f"{browser} %s", "PYTHONPATH": str(ROOT / "clients/python/src")}

    async def follow(self, commands: str) -> tuple[str, str]:
        pipe = asyncio.subprocess.PIPE
        shell = await asyncio.create_subprocess_exec(
            "bash", "-euc", commands, cwd=self.folder, env=self.env,
            stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe,
        )  # fmt: skip
        out, err = await asyncio.wait_for(shell.communicate(), PATIENCE_S)
        assert shell.returncode == 0, (out.decode(), err.decode())
        return out.decode(), err.decode()

    async def opened(self) -> str:
        async with asyncio.timeout(PATIENCE_S):
            while not self.link.exists():
                await asyncio.sleep(0.05)
        return self.link.read_text().strip()


async def test_the_guide_leads_to_a_lease_and_a_revocation(tmp_path: Path):
    for name in ("as", "here", "data"):
        (tmp_path / name).mkdir()
    async with running_authorization_server(tmp_path / "as") as server:
        platform = await EvergrantProcess.start(tmp_path / "data", server.issuer.removeprefix("http://"))
        try:
            reader = Reader(tmp_path / "here", platform)
            (tmp_path / "here" / "secret.txt").write_text(f"{server.client_secret}\n")

            def typed(block: str, **more: str) -> str:
                replaced = {"http://localhost:9000": server.issuer, "my-client": server.client_id, **more}
                for words, meant in replaced.items():
                    block = block.replace(words, meant)
                return block

            _, told = await reader.follow(typed(INIT))
            (redirect_uri,) = CALLBACK.findall(told)
            await server.register(redirect_uri)

            connecting = asyncio.create_task(reader.follow(typed(CONNECT)))
            await server.scripted_consent(await reader.opened())
            out, told = await connecting
            assert "alice is connected at server with read\n" in told
            assert "a token with read\nvalid until " in out

            out, _ = await reader.follow(typed(INTEGRATION) + typed(APP))
            assert len(set(CALLBACK.findall(out))) == 1
            assert (tmp_path / "here" / "report.key").read_text().startswith("evg_")

            (id,) = re.findall(r"con_\w+", (await reader.follow(REVOKE.splitlines()[0]))[0])
            out, _ = await reader.follow(REVOKE.splitlines()[1].replace("con_…", id))
            assert re.search(r"^state +revok", out, re.MULTILINE)
            assert server.client_secret not in out + told
        finally:
            assert await platform.stop() == 0
