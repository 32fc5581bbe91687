"""The TypeScript client, built by `make typescript`, gets a lease, a link and a refusal of a served API."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bench import installation
from bench.installation import TENANT, token_reply
from evergrant_server.core.access import Action
from evergrant_server.crypto.keyring import Role
from evergrant_server.wiring.platform import open_platform
from tests.fakes.databases import sqlite_url
from tests.fakes.http_server import served
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.serving import serving
from tests.fakes.ports import free_port
from tests.fakes.providers.oidc_provider import NODE
from tests.fakes.rows import put_app

ROOT = Path(__file__).parents[3]
SMOKE = """
import { Evergrant, EvergrantError } from './index.js'
import { answer } from './backend.js'

const evergrant = new Evergrant({ url: URL_ + '/', apiKey: async () => KEY, deadline: 60_000 })

const lease = await evergrant.lease('crm', SUBJECT, { scopes: ['read'] })
if (lease.kind !== 'lease') throw new Error(lease.kind)
// @ts-expect-error: only the other answer has a link
lease.connectUrl
if (lease.access_token !== TOKEN) throw new Error('another token')

const asked = await evergrant.lease('crm', 'alice')
if (asked.kind !== 'consent_required') throw new Error(asked.kind)
// @ts-expect-error: a consent that is awaited has no token
asked.access_token
const connection = await evergrant.connect({ integration: 'crm', subject: 'alice' })
if (connection.connect_url !== asked.connectUrl) throw new Error('another link')

const refused = await evergrant.lease('none', 'alice').catch((error: unknown) => error)
if (!(refused instanceof EvergrantError) || refused.code !== 'not_found' || !refused.repair) throw refused

const { data } = await evergrant.api.GET('/v1/connections', { params: { query: { subject: 'alice' } } })
// @ts-expect-error: the document has no such member
data?.nothing
console.log(data?.items.map((it) => it.state).join())

// a cell that the tenant has left
const elsewhere = new Evergrant({ url: LEFT, apiKey: KEY, cells: ['https://*.evergrant.example'] })
const stays = await elsewhere.lease('crm', SUBJECT).catch((error: unknown) => error)
if (!(stays instanceof EvergrantError) || stays.code !== 'tenant_moved') throw stays
const follows = new Evergrant({ url: LEFT, apiKey: KEY, cells: [URL_ + '/'] })
for (let time = 0; time < 2; time++) {
  const moved = await follows.lease('crm', SUBJECT, { scopes: ['read'] })
  if (moved.kind !== 'lease' || moved.access_token !== TOKEN) throw new Error(moved.kind)
}

// examples/web/backend.ts, as the connect element calls it
const alice = { subject: 'alice', verifier: 'v'.repeat(43) }
const own = { 'Sec-Fetch-Site': 'same-origin' }
const asks = (path: string, method = 'GET', headers: Record<string, string> = own) =>
  answer(new Request('https://shop.example/evergrant/' + path, { method, headers }), evergrant, alice)
const listed = await (await asks('connections')).json()
const begun = await asks('connect/crm?label=second', 'POST')
const ended = await asks('disconnect/crm', 'POST')
const foreign = await asks('disconnect/crm?label=second', 'POST', { 'Sec-Fetch-Site': 'cross-site' })
const over = await answer(new Request('https://shop.example/evergrant/connections'), evergrant, undefined)
console.log(listed.integrations[0].accounts[0].status, begun.status, ended.status, foreign.status)
const after = (await (await asks('connections')).json()).integrations[0].accounts
const waits = after.filter((account: { status: string }) => account.status === 'pending')
console.log(over.status, waits.map((account: { label: string }) => account.label).join())
"""
SAID = "pending_consent\npending 200 204 403\n401 second\n"
BACK = ("https://shop.example/evergrant/connected",)
BACKEND = (ROOT / "examples/web/backend.ts").read_text(encoding="utf-8")


@pytest.mark.soak
async def test_the_client_is_typed_by_the_document_and_gets_leases_links_and_refusals(
    temporal_address: str, tmp_path: Path
):
    reply = token_reply()
    ready = await installation.prepare(
        tmp_path,
        sqlite_url(tmp_path),
        free_port(),
        [reply],
        temporal_address=temporal_address,
        allow_unbound_consent=True,
    )
    async with open_platform(ready.settings, Role.OPERATOR) as parts:
        everything = {"name": "all", "integration": "*", "actions": tuple(Action)}
        async with parts.store.write() as tx:
            key = await put_app(tx, TENANT, "everything", parts.clock.now(), everything, return_to=BACK)
    folder = tmp_path / "client"
    (folder / "src").mkdir(parents=True)
    async with serving(ready.settings) as url, a_cell_left_for(url) as (left, asked):
        values = {
            "URL_": url,
            "LEFT": left,
            "KEY": key,
            "TOKEN": reply["access_token"],
            "SUBJECT": ready.connections[0].subject,
        }
        smoke = "".join(f"const {name}: string = {value!r}\n" for name, value in values.items()) + SMOKE
        (folder / "src/smoke.ts").write_text(smoke)
        (folder / "src/backend.ts").write_text(BACKEND.replace("'evergrant'", "'./index.js'"))
        await finished("bash", str(ROOT / "clients/typescript/build.sh"), sys.prefix, str(folder))
        assert await finished(str(NODE), str(folder / "dist/smoke.js")) == SAID
        # two clients ask it once each, and `fetch` repeats that over a new connection, as its standard says
        assert asked == ["/v1/lease"] * 4


@asynccontextmanager
async def a_cell_left_for(address: str) -> AsyncIterator[tuple[str, list[str]]]:
    """The URL of a server that says of every request that the tenant has moved, and the paths asked for."""
    asked: list[str] = []
    problem = json.dumps({"code": "tenant_moved", "moved_to": address}).encode()
    headers = [(b"content-type", b"application/problem+json")]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["path"])
        await send({"type": "http.response.start", "status": 421, "headers": headers})
        await send({"type": "http.response.body", "body": problem})

    async with served(app) as url:
        yield url, asked


async def finished(*command: str) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith("EVERGRANT_")}
    pipe = subprocess.PIPE
    child = await asyncio.create_subprocess_exec(*command, env=env, stdout=pipe, stderr=subprocess.STDOUT)
    out, _ = await asyncio.wait_for(child.communicate(), PATIENCE_S)
    assert child.returncode == 0, out.decode()
    return out.decode()
