"""Readers: apps that lease tokens all the time, and check at the provider what they got."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import httpx2

READERS = 200
DEADLINE_S = 45.0  # of one lease: ten seconds for a refresh, thirty for a database that is away
_A_MOMENT_S = 3.0  # after a kill of a family until the store says so
_THINKS_S = (2.0, 6.0)


Works = Callable[[str], Awaitable[bool]]  # does the provider take this access token?


@dataclass
class Seen:
    """What all readers saw."""

    leases: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    revoked: dict[str, float] = field(default_factory=dict)  # connection -> when the API had said so
    slowest_s: float = 0.0


async def read(
    clients: list[httpx2.AsyncClient],
    connections: list[str],
    works: Works,
    seen: Seen,
    chance: random.Random,
    until: float,
) -> None:
    """One reader's life."""
    await asyncio.sleep(chance.uniform(0, _THINKS_S[1]))
    while time.monotonic() < until:
        connection = chance.choice(connections)
        token = await _lease(chance.choice(clients), connection, seen)
        if token is not None and not await works(token):
            await asyncio.sleep(_A_MOMENT_S)
            again = await _lease(chance.choice(clients), connection, seen)
            if again is not None and not await works(again):
                seen.violations.append(f"{connection}: two leases gave a token that the provider refuses")
        await asyncio.sleep(chance.uniform(*_THINKS_S))


async def _lease(client: httpx2.AsyncClient, connection: str, seen: Seen) -> str | None:
    """A token, or None for a typed answer. Everything else is a violation."""
    began = time.monotonic()
    try:
        answer = await client.post(f"/v1/connections/{connection}/token", json={})
    except httpx2.HTTPError as error:
        seen.violations.append(f"{connection}: {type(error).__name__} after {time.monotonic() - began:.1f} s")
        return None
    seen.slowest_s = max(seen.slowest_s, time.monotonic() - began)
    if answer.status_code == 200:
        seen.leases += 1
        seen.answers["token"] += 1
        if seen.revoked.get(connection, float("inf")) < began:
            seen.violations.append(f"{connection}: a token after it was revoked")
        return str(answer.json()["access_token"])
    code = answer.json().get("code") if "json" in answer.headers.get("content-type", "") else None
    seen.answers[str(code)] += 1
    if code in (None, "internal"):
        seen.violations.append(f"{connection}: {answer.status_code} without a typed answer")
    return None
