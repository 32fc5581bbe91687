"""The guide to webhooks, followed: the command, the example's receiver, and real processes between them."""

import json
import re
import tempfile
from pathlib import Path

import pytest

from examples.demo.subject import Subject
from tests.e2e.world import COMMAND, run
from tests.fakes.platform.processes import ROOT, RunningPlatform, running_platform
from tests.fakes.ports import free_port
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.temporal import running_temporal

GUIDE = (ROOT / "docs/guide/webhooks.md").read_text(encoding="utf-8")
EXAMPLE = (ROOT / "examples/webhook_receiver/__main__.py").read_text(encoding="utf-8")


def test_the_guide_shows_the_example() -> None:
    (shown,) = re.findall(r"^```python\n(.*?)^```", GUIDE, flags=re.MULTILINE | re.DOTALL)
    assert shown == EXAMPLE.partition('"""\n\n')[2]


async def evergrant(platform: RunningPlatform, *arguments: str) -> str:
    """The command, as the guide writes it."""
    status, said, complaint = await run(platform.url, platform.admin_key, COMMAND, *arguments)
    assert status == 0, complaint
    return said


@pytest.mark.soak
async def test_the_guide_works_as_written() -> None:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="evergrant-") as name:
        folder = Path(name)
        async with (
            ScriptedProvider() as idp,
            running_temporal(folder) as temporal,
            running_platform(
                folder, temporal.address, allow=(idp.allowance, f"127.0.0.1:{port}")
            ) as platform,
        ):
            await platform.integration("crm", idp)
            url = f"http://127.0.0.1:{port}/in"
            made = json.loads(await evergrant(platform, "webhooks", "put", "ops", url, "-o", "json"))
            receiver = ("examples.webhook_receiver", str(port))
            await platform.start("receiver", *receiver, WEBHOOK_SECRET=made["secret"])
            await evergrant(platform, "webhooks", "test", "ops")
            await platform.until_said("receiver", "webhook.ping")
            async with platform.caller(await platform.app("app", "crm", "connect")) as app:
                asked = {"integration": "crm", "subject": "alice"}
                opened = (await app.post("/v1/connections", json=asked)).json()
                async with Subject("", "") as subject:
                    await subject.consent(opened["connect_url"])
                await platform.until_said("receiver", f"connection.created {opened['id']}")
                await app.post(f"/v1/connections/{opened['id']}/revoke", json={})
            await platform.until_said("receiver", f"connection.revoked {opened['id']}")
            log = json.loads(await evergrant(platform, "webhooks", "deliveries", "ops", "-o", "json"))
            await evergrant(platform, "webhooks", "replay", "ops", log[0]["id"])
            rotated = await evergrant(platform, "webhooks", "rotate", "ops", "--overlap", "0", "-o", "json")
            assert json.loads(rotated)["secret"] != made["secret"]
            await evergrant(platform, "webhooks", "test", "ops")
            await platform.until_said("receiver", '" 400 ')
            said = platform.log("receiver").decode()
    events = re.findall(r"^(connection\.\w+|webhook\.ping)", said, flags=re.MULTILINE)
    assert events == ["webhook.ping", "connection.created", "connection.revoked"], "each once, replay or not"
