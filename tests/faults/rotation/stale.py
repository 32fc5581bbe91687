"""An API that is stopped before a new root is announced, and goes on when the old one is to be retired."""

import asyncio
import json
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from sqlalchemy import select

from bench.load import HOST
from evergrant_server.core.key_rotation import RotationStep
from evergrant_server.crypto import KeyPurpose
from evergrant_server.crypto.root_keys import RootState
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import fetch_all
from evergrant_server.store.keys import NO_CONNECTION, KeyRow
from tests.fakes.patience import PATIENCE_S, eventually
from tests.faults.rotation.gate import Passage
from tests.faults.rotation.place import Place

PURPOSE = KeyPurpose.INTAKE  # which an API holds and seals with
_TENANT = "late"  # it has no keys yet: the API makes one, under the root that it knows
_REFUSED = 2  # so many passes of the retirement, before the API goes on
_KEYS = table_of(KeyRow)


class Stale:
    """The rotation may not retire the old root while this API is silent, and has to once it is current."""

    def __init__(self, place: Place, say: Callable[[str], None]) -> None:
        self._place, self._say = place, say
        self.id = ""
        self.waited = Counter[str]()  # passes that named it, by step
        self.wrong: list[str] = []
        self._key = ""
        self._answers: asyncio.Task[list[str]] | None = None

    async def watch(self, passage: Passage) -> None:
        if passage.step == RotationStep.ANNOUNCE and not self.id:
            await self._stop()
        if any(self.id in name for name in passage.waits_for):
            self.waited[str(passage.step)] += 1
        alone = len(passage.waits_for) == 1 and self.id in passage.waits_for[0]
        retires = passage.step == RotationStep.DESTROY
        if retires and alone and self.waited[RotationStep.DESTROY] >= _REFUSED and self._answers is None:
            await self._go_on()

    async def over(self) -> None:
        """What has come of it, once the rotation is over."""
        for step in (RotationStep.HOLD, RotationStep.DESTROY):
            if not self.waited[step]:
                self.wrong.append(f"the step {step} didn't wait for the API that was stopped")
        if self._answers is None:
            self.wrong.append("the old root was retired while the API was stopped")
            return
        answers = await self._answers
        self._say(f"the stopped API goes on, and is asked to seal: {', '.join(answers)}")
        if answers[-1] != "201":
            self.wrong.append(f"the API that was stopped doesn't seal: {answers}")
        mine = select(_KEYS).where(_KEYS.c.tenant == _TENANT, _KEYS.c.connection_id == NO_CONNECTION)
        async with self._place.store.read() as tx:
            rows = await fetch_all(tx.connection, mine.where(_KEYS.c.purpose == PURPOSE.value))
        states = await self._place.root_states(PURPOSE)
        roots = [row["wrapping_key_id"] for row in rows]
        if [states.get(root) for root in roots] != [RootState.CURRENT]:
            self.wrong.append(f"the API that was stopped sealed under {roots}, of {states}")

    async def _stop(self) -> None:
        place, api = self._place, self._place.stale
        self._key = (await place.command("keys", "bootstrap", EVERGRANT_TENANT=_TENANT)).strip()
        before = {process.id for process in await place.processes()}
        await api.start()

        async def begun() -> set[str]:
            return {process.id for process in await place.processes() if process.role == "api"} - before

        (self.id,) = await eventually(begun)
        api.signal(signal.SIGSTOP)
        self._say(f"{self.id} is stopped")

    async def _go_on(self) -> None:
        states = (await self._place.root_states(PURPOSE)).values()
        if RootState.OPEN not in states:
            self.wrong.append(f"the old root isn't open any more: {list(states)}")
        first = await self._sent()
        self._place.stale.signal(signal.SIGCONT)
        self._answers = asyncio.create_task(self._answered(*first))

    async def _sent(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A request that lies in the socket of the API."""
        port = self._place.stale.port
        reader, writer = await asyncio.open_connection(HOST, port)
        head = f"POST /v1/apps/admin/keys HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n"
        head += f"Authorization: Bearer {self._key}\r\nIdempotency-Key: late\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        await writer.drain()
        return reader, writer

    async def _answered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> list[str]:
        """The answers, the last of which isn't temporary, or is the last that was waited for."""
        answers: list[str] = []
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
                    status = head.split()[1] if head else "none"
                    answers.append(status if status != "503" else f"503 {json.loads(body)['detail']}")
                    if status not in ("503", "none"):
                        break
                    writer.close()
                    await asyncio.sleep(1)
                    reader, writer = await self._sent()
        return answers
