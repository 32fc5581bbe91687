"""A host of metadata documents of OAuth clients, and the worker that may call it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from activities.oauth import ClientDocumentActivities
from evergrant_server.core.messages import jobs
from evergrant_server.egress import Egress, EgressPolicy
from tests.fakes.api import Api
from tests.fakes.certificates import LoopbackTls, loopback_tls
from tests.fakes.http_server import listening, read_request
from tests.security.clients.agents import REDIRECT


class DocumentHost:
    """A host of metadata documents, and the worker that may call it."""

    def __init__(self, api: Api, tls: LoopbackTls, port: int) -> None:
        self.api, self.port = api, port
        self.url = f"https://127.0.0.1:{port}/agent.json"
        self.document: dict[str, Any] = {
            "client_id": self.url,
            "client_name": "Coder",
            "redirect_uris": [REDIRECT],
        }
        self.status, self.headers, self.body = 200, "", b""
        self.asked: list[str] = []
        egress = Egress(EgressPolicy(allow=(f"127.0.0.1:{port}",)), tls=tls.trust)
        self.worker = ClientDocumentActivities(api.worker, egress, api.clock)
        api.link.on_job[jobs.READ_CLIENT_DOCUMENT.name] = self.worker.read_document

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, target, headers, _ = await read_request(reader)
        self.asked.append(f"{target} {headers.get('authorization')}")
        body = self.body or json.dumps(self.document).encode()
        head = f"HTTP/1.1 {self.status} OK\r\n{self.headers}content-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()


@asynccontextmanager
async def document_host(api: Api, folder: Path) -> AsyncIterator[DocumentHost]:
    tls, found = loopback_tls(folder), []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await found[0].talk(reader, writer)

    async with listening(talk, tls=tls.server) as port:
        found.append(DocumentHost(api, tls, port))
        yield found[0]
