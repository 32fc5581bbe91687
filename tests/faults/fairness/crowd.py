"""Many clients of one app, in a process of their own. Each sends its next request when the last is answered.

Reads one crowd per line from standard input, `{"port": 1, "key": "…", "integration": "crm", "subjects": 20,
"clients": 100, "seconds": 8, "each_once": false}`, and answers with how often each status came. `each_once`:
until every subject has been leased.
"""

import asyncio
import json
import sys
import time
from collections import Counter, deque
from typing import Any

_ANSWER_S = 40.0


class Crowd:
    """The clients and what is left to do."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        self.statuses = Counter[str]()
        self._wanted = wanted
        self._until = time.monotonic() + wanted["seconds"]
        self._waiting = deque(range(wanted["subjects"]))
        self._once = wanted.get("each_once", False)

    async def run(self) -> None:
        await asyncio.gather(*(self._client() for _ in range(self._wanted["clients"])))

    async def _client(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._wanted["port"])
        while self._waiting and time.monotonic() < self._until:
            subject = self._waiting.popleft()
            writer.write(self._request(subject))
            try:
                async with asyncio.timeout(_ANSWER_S):
                    status = await _status(reader)
            except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
                self.statuses[type(error).__name__] += 1
                self._waiting.append(subject)
                return
            self.statuses[status] += 1
            if not self._once or status != "200":
                self._waiting.append(subject)
        writer.close()

    def _request(self, subject: int) -> bytes:
        body = json.dumps({"integration": self._wanted["integration"], "subject": f"user-{subject}"})
        head = (
            f"POST /v1/lease HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self._wanted['key']}\r\n"
        )
        type_and_length = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        return (head + type_and_length + body).encode()


async def _status(reader: asyncio.StreamReader) -> str:
    """Read one answer whole."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = int(head.partition("content-length:")[2].partition("\r\n")[0])
    await reader.readexactly(length)
    return head.split(" ", 2)[1]


def main() -> None:
    """Run crowds until standard input ends."""
    for line in sys.stdin:
        crowd = Crowd(json.loads(line))
        asyncio.run(crowd.run())
        print(json.dumps(crowd.statuses), flush=True)


if __name__ == "__main__":
    main()
