"""Readers: apps that lease tokens all the time, and check at the provider what they got."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2

READERS = 200
DEADLINE_S = 45.0  # of one lease: ten seconds for a refresh, thirty for a database that is away
_A_MOMENT_S = 3.0  # after a kill of a family until the store says so
_THINKS_S = (2.0, 6.0)


Works = Callable[[str], Awaitable[bool]]  # does the provider take this access token?


@dataclass
class ReaderRecord:
    """What all readers saw."""

    leases: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    revoked: dict[str, float] = field(default_factory=dict)  # connection -> when the API had said so
    slowest_s: float = 0.0
    clock_went_back: bool = False  # then a token that is over looks valid until a reader reports it
    reported: int = 0


@dataclass(frozen=True)
class Leased:
    access_token: str = field(repr=False)
    generation: int


async def read(
    clients: list[httpx2.AsyncClient],
    connections: list[str],
    works: Works,
    seen: ReaderRecord,
    chance: random.Random,
    until: float,
) -> None:
    """One reader's life."""
    await asyncio.sleep(chance.uniform(0, _THINKS_S[1]))
    while time.monotonic() < until:
        connection = chance.choice(connections)
        token = await _lease(chance.choice(clients), connection, seen)
        if token is not None and not await works(token.access_token):
            await _insist(chance.choice(clients), connection, token, works, seen, until)
        await asyncio.sleep(chance.uniform(*_THINKS_S))


async def _insist(
    client: httpx2.AsyncClient,
    connection: str,
    refused: Leased,
    works: Works,
    seen: ReaderRecord,
    until: float,
) -> None:
    """The provider refuses what we were given. Where our clock says that it is good it is reported, as
    clients do: the answer is a newer token, or a typed no."""
    began = time.monotonic()
    while True:
        if seen.clock_went_back and not await _reported(client, connection, refused, seen):
            return
        await asyncio.sleep(_A_MOMENT_S)
        again = await _lease(client, connection, seen)
        if again is None or await works(again.access_token):
            return
        if not seen.clock_went_back or time.monotonic() - began > DEADLINE_S:
            seen.violations.append(f"{connection}: a token that the provider refuses was given again")
            return
        if seen.clock_went_back and time.monotonic() > until:
            return  # the next refresh may come after the run
        refused = again


async def _reported(client: httpx2.AsyncClient, connection: str, token: Leased, seen: ReaderRecord) -> bool:
    """Say that the provider answered 401 to this generation. True: done, and a lease is worth another try."""
    body = {"generation": token.generation, "reason": "unauthorized"}
    answer = await _asked(client, f"/v1/connections/{connection}/refresh", body, connection, seen)
    seen.reported += 1
    return answer is not None and answer.status_code == 200


async def _lease(client: httpx2.AsyncClient, connection: str, seen: ReaderRecord) -> Leased | None:
    """A token, or None for a typed answer. Everything else is a violation."""
    began = time.monotonic()
    answer = await _asked(client, f"/v1/connections/{connection}/token", {}, connection, seen)
    if answer is None or answer.status_code != 200:
        return None
    seen.leases += 1
    if seen.revoked.get(connection, float("inf")) < began:
        seen.violations.append(f"{connection}: a token after it was revoked")
    told = answer.json()
    return Leased(str(told["access_token"]), int(told["generation"]))


async def _asked(
    client: httpx2.AsyncClient, path: str, body: dict[str, Any], connection: str, seen: ReaderRecord
) -> httpx2.Response | None:
    """The answer, if it is one with a meaning."""
    began = time.monotonic()
    try:
        answer = await client.post(path, json=body)
    except httpx2.HTTPError as error:
        seen.violations.append(f"{connection}: {type(error).__name__} after {time.monotonic() - began:.1f} s")
        return None
    seen.slowest_s = max(seen.slowest_s, time.monotonic() - began)
    if answer.status_code == 200:
        return answer
    code = answer.json().get("code") if "json" in answer.headers.get("content-type", "") else None
    seen.answers[str(code)] += 1
    if code in (None, "internal"):
        seen.violations.append(f"{connection}: {answer.status_code} without a typed answer")
    return answer
