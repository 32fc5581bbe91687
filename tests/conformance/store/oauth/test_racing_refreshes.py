"""Refreshes of one token at once, and text that PostgreSQL can't hold, through the API on both databases."""

import asyncio
from pathlib import Path

from evergrant_server.api.apps.keys import bootstrap_admin
from evergrant_server.core.access import Action
from tests.fakes.api import TENANT, running_api
from tests.fakes.platform.gateway_clients import authorized_client


async def test_processes_that_refresh_at_once_get_one_successor(database_url: str, tmp_path: Path):
    async with running_api(tmp_path, database_url=database_url) as api:
        await api.app_with("agent", Action.PROXY)
        agent = await authorized_client(api, "agent")
        token = (await agent.tokens())["refresh_token"]
        for _ in range(3):
            answers = await asyncio.gather(*(agent.refresh(token) for _ in range(10)))
            assert {it.status_code for it in answers} == {200}, [it.text for it in answers]
            (token,) = {it.json()["refresh_token"] for it in answers}


async def test_text_that_no_row_can_hold_is_refused_by_name(database_url: str, tmp_path: Path):
    async with running_api(tmp_path, database_url=database_url) as api:
        await api.app_with("agent", Action.PROXY)
        agent = await authorized_client(api, "agent")
        for path, form in (("/oauth/token", {"grant_type": "refresh_token"}), ("/oauth/revoke", {})):
            sent = {"client_id": "\0", "refresh_token": "\0", "token": "\0", **form}
            assert (await agent.ask(path, **sent)).json()["error"] == "invalid_client"
        admin = await bootstrap_admin(api.store, api.clock, TENANT, api.parts.settings.api_key_lifetime)
        for name in ("app", "client_id", "subject"):
            listed = await api.get(f"/v1/token-families?{name}=%00", admin)
            ended = await api.post("/v1/token-families/end", admin, {name: "\0"})
            assert (listed.status_code, ended.status_code) == (400, 400), name
