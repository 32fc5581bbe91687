"""One tenant's app that leases steadily, in a process of its own: how long each lease took, and each refusal.

Reads one round per line from standard input, `{"port": 1, "key": "…", "integration": "crm", "subjects": 20,
"per_second": 25, "seconds": 8}`, and answers with one line of JSON. A lease begins at its time whether or not
earlier ones are answered, and its latency counts from that time: nothing waits unseen. It fails when nothing
has come after half a minute, or an answer that no waiting changes.
"""

import asyncio
import gc
import json
import sys
import time
from typing import Any

import httpx2

_DEADLINE_S = 30.0


async def _round(wanted: dict[str, Any]) -> dict[str, Any]:
    latencies: list[float] = []
    refusals: list[str] = []
    number = int(wanted["per_second"] * wanted["seconds"])
    began = time.perf_counter() + 0.05

    async def lease(client: httpx2.AsyncClient, turn: int) -> None:
        due = began + turn / wanted["per_second"]
        await asyncio.sleep(due - time.perf_counter())
        body = {"integration": wanted["integration"], "subject": f"user-{turn % wanted['subjects']}"}
        try:
            async with asyncio.timeout(_DEADLINE_S):
                answer = await _leased(client, body)
        except (httpx2.HTTPError, TimeoutError) as error:
            refusals.append(type(error).__name__)
            return
        latencies.append(time.perf_counter() - due)
        if answer.status_code != 200:
            refusals.append(f"{answer.status_code} {answer.json().get('code')}")

    headers = {"Authorization": f"Bearer {wanted['key']}"}
    url = f"http://127.0.0.1:{wanted['port']}"
    async with httpx2.AsyncClient(
        base_url=url, headers=headers, trust_env=False, timeout=_DEADLINE_S
    ) as client:
        await asyncio.gather(*(lease(client, turn) for turn in range(number)))
    return {"latencies": latencies, "refusals": refusals}


async def _leased(client: httpx2.AsyncClient, body: dict[str, Any]) -> httpx2.Response:
    """The answer, as Evergrant's clients wait for one: a 503 is tried again when its Retry-After says."""
    while True:
        answer = await client.post("/v1/lease", json=body)
        if answer.status_code != 503:
            return answer
        await asyncio.sleep(float(answer.headers["Retry-After"]))


def main() -> None:
    """Run rounds until standard input ends."""
    gc.disable()  # a pause would count as the API's
    for line in sys.stdin:
        print(json.dumps(asyncio.run(_round(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
