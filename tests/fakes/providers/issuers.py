"""Real authorization servers of which Evergrant is told the issuer, started and ended around a test.

Each is a module of this package that is run as a program, since it brings a framework of its own. It says
its issuer, and where it takes `{redirect_uri, secret_works, end_grants}` as a test wants it to be; the
answer counts its live grants.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from examples.demo.processes import Process
from examples.demo.subject import Landing, Subject
from tests.fakes.patience import PATIENCE_S


class Issuer:
    """A running server."""

    def __init__(self, process: Process, http: httpx2.AsyncClient) -> None:
        self._http = http
        self._control: str = process.ready["control"]
        self.issuer: str = process.ready["issuer"]

    async def control(self, **wanted: Any) -> int:
        """Change it; returns how many grants are live."""
        reply = await self._http.post(self._control, json=wanted)
        return reply.raise_for_status().json()["live"]

    @staticmethod
    async def consent(url: str) -> Landing:
        """A fresh browser opens `url`, logs in where it is asked to, and allows."""
        async with Subject("sam", "a-password") as subject:
            return await subject.consent(url)


@asynccontextmanager
async def running_issuer(name: str) -> AsyncIterator[Issuer]:
    """Start the module of this name on a free port; end it by pid."""
    process = await Process.start(name, ["-m", f"tests.fakes.providers.{name.replace('-', '_')}"])
    try:
        async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
            yield Issuer(process, http)
    finally:
        await process.stop()
