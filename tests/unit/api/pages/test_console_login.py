"""The form for a key is at the public URL: another origin's answer would be refused."""

from pathlib import Path

import httpx2
import pytest

from tests.fakes.api import running_api


@pytest.mark.parametrize(
    ("came_by", "led_to"),
    [
        ("http://localhost:8480", "http://127.0.0.1:8480/console/login"),
        ("http://127.0.0.1:8480", None),
        ("http://localhost:9000", None),  # a proxy on this machine
        ("http://elsewhere.example:8480", None),
    ],
)
async def test_another_name_of_this_machine_leads_to_the_public_url(
    tmp_path: Path, came_by: str, led_to: str | None
):
    async with running_api(tmp_path, public_url="http://127.0.0.1:8480") as api:
        transport = httpx2.ASGITransport(app=api.app)
        async with httpx2.AsyncClient(transport=transport, base_url=came_by) as browser:
            answer = await browser.get("/console/login", follow_redirects=False)
        assert answer.headers.get("location") == led_to
        assert answer.status_code == (200 if led_to is None else 303)
