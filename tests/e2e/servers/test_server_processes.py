"""The real parts that other tests stand on start here, do what is asked and end by their pid."""

import asyncio
import os
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.worker import Worker

from tests.e2e.servers.sleeping_workflow import Naps
from tests.fakes.browser import running_browser
from tests.fakes.patience import PATIENCE_S
from tests.fakes.providers.authorization_server import running_authorization_server
from tests.fakes.temporal import NoTemporal, TemporalServer, running_temporal, skipping_time


async def test_the_dev_server_keeps_its_workflows_and_ends_by_pid(tmp_path):
    async with running_temporal(tmp_path) as server:
        await server.keep_closed_runs(timedelta(days=365))
        client = await server.client()
        await client.start_workflow(Naps.run, 1, id="nap", task_queue="nobody")
        pid = server.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    async with running_temporal(tmp_path) as server:
        client = await server.client()
        assert (await client.get_workflow_handle("nap").describe()).workflow_type == "Naps"
        namespace = await client.workflow_service.describe_namespace(
            DescribeNamespaceRequest(namespace="default")
        )
        assert namespace.config.workflow_execution_retention_ttl.ToTimedelta() == timedelta(days=365)


async def test_the_dev_server_shows_its_ui(tmp_path):
    async with running_temporal(tmp_path, headless=False) as server:
        assert server.ui is not None
        async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
            page = await http.get(server.ui, follow_redirects=True)
        assert page.status_code == 200
        assert "html" in page.headers["content-type"]


async def test_a_dev_server_that_cannot_start_says_why(tmp_path):
    (tmp_path / "temporal.db").write_text("this is no database, and long enough to be looked at" * 20)
    with pytest.raises(NoTemporal, match="did not come up"):
        await TemporalServer.start(tmp_path)


async def test_the_test_server_skips_a_year():
    async with (
        skipping_time() as environment,
        Worker(environment.client, task_queue="naps", workflows=[Naps]),
    ):
        async with asyncio.timeout(PATIENCE_S):
            answer = await environment.client.execute_workflow(
                Naps.run, 365 * 24, id="long-nap", task_queue="naps"
            )
        assert answer == "rested"


async def test_a_person_with_chromium_consents(tmp_path):
    arrived: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = (await reader.readline()).decode()
        if "/callback?" in line and not arrived.done():
            arrived.set_result(line.split()[1])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ndone")
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(callback, "127.0.0.1", 0)
    redirect = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/callback"
    async with listener, running_authorization_server(tmp_path) as server, running_browser() as browser:
        await server.register(redirect)
        page = await browser.new_page()
        await page.goto(
            f"{server.issuer}/authorize/?response_type=code&client_id={server.client_id}&scope=read"
            f"&redirect_uri={redirect}&state=here&code_challenge={'a' * 43}&code_challenge_method=S256"
        )
        await page.fill("input[name=username]", server.user)
        await page.fill("input[name=password]", server.password)
        await page.click("input[type=submit]")
        await page.click("input[name=allow]")
        async with asyncio.timeout(PATIENCE_S):
            query = parse_qs(urlsplit(await arrived).query)
        assert query["state"] == ["here"]
        assert query["iss"] == [server.issuer]
        assert query["code"]
