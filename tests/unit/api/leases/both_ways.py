"""The same requests to an application that remembers judged pairs, and to one that never finds any."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from fastapi import FastAPI

from evergrant_server.api.app import create_app
from evergrant_server.core.access import Action, Permit
from evergrant_server.core.audit import AuditAction, AuditRecord
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.ids import new_id
from evergrant_server.telemetry import metrics
from tests.fakes.api import TENANT, Api, running_api
from tests.fakes.databases import lent, postgres_server

__all__ = ["api", "postgres_server"]
NAMES = {"integration": "crm", "subject": "user-1"}
_PLACE = re.compile(rb'"audit": "([^"]+)"')
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest_asyncio.fixture(params=["sqlite", "postgresql"])
async def api(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Api]:
    if request.param == "postgresql":
        request.getfixturevalue("postgres_server")
    async with lent(request.param, tmp_path) as url, running_api(tmp_path, database_url=url) as running:
        yield running


def leased(api: Api) -> int:
    """The leases of judged pairs."""
    return api.app.state.judged_pairs.leased


@dataclass
class Sent:
    """A request as a server hands it on, which need not be right."""

    name: str
    body: bytes | Mapping[str, Any] = field(default_factory=lambda: NAMES)
    path: str = "/v1/lease"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    method: str = "POST"
    query: bytes = b""
    key: str | None = ""  # "": that of the app
    length: int | None = -1  # -1: that of the body
    parts: int = 1  # of the body: 2 and an empty one; 3: whole, and an empty one; 0: the caller goes
    pair: bool = True  # whether its second lease is one of a judged pair
    places: list[str] = field(default_factory=list)  # of the records, as the answers named them

    async def to(
        self, app: FastAPI, key: str, path: str, comes: asyncio.Event | None = None
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """Status, headers in order, body; without the ids that were made for it. `comes`: the body, then."""
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        messages = [{"type": "http.request", "body": body, "more_body": self.parts > 1}]
        if self.parts == 2:
            messages = [
                {"type": "http.request", "body": body[:7], "more_body": True},
                {"type": "http.request", "body": body[7:], "more_body": True},
                {"type": "http.request", "body": b"", "more_body": False},
            ]
        elif self.parts == 3:
            messages.append({"type": "http.request", "body": b"", "more_body": False})
        elif self.parts == 0:
            messages = [{"type": "http.request", "body": body[:7], "more_body": True}]
        headers = [(b"host", b"evergrant.test"), *self.headers]
        presented = key if self.key == "" else self.key
        if presented is not None:
            headers.append((b"authorization", f"Bearer {presented}".encode()))
        if self.length is not None:
            headers.append((b"content-length", b"%d" % (len(body) if self.length < 0 else self.length)))
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": self.method,
            "scheme": "https", "path": path, "raw_path": path.encode(), "query_string": self.query,
            "root_path": "", "headers": headers, "client": ("192.0.2.7", 1), "server": ("host.test", 443),
        }  # fmt: skip
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if comes is not None:
                await comes.wait()
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope, receive, send)
        start, body = sent[0], b"".join(message.get("body", b"") for message in sent[1:])
        placed = _PLACE.search(body)
        if placed is not None:  # the next lease's differs, and so may the number of its digits
            self.places.append(placed[1].decode())
            assert dict(start["headers"])[b"content-length"] == b"%d" % len(body)
            body = _PLACE.sub(b'"audit": "-"', body)
        shown = [
            (name, b"%d" % len(body) if placed and name == b"content-length" else value)
            for name, value in start["headers"]
            if not self._is_new_id(name)
        ]
        return start["status"], shown, body

    def _is_new_id(self, name: bytes) -> bool:
        return name == b"x-request-id" and (name not in dict(self.headers) or "bad" in self.name)


def by_id(name: str, body: bytes | Mapping[str, Any] = b"{}", /, **more: Any) -> Sent:
    return Sent(name, body, "/v1/connections/{id}/token", **more)


def no_pair(name: str, body: bytes | Mapping[str, Any] = NAMES, **more: Any) -> Sent:
    return Sent(name, body, pair=False, **more)


class BothWays:
    """The application beside one that remembers no pair."""

    def __init__(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        self.api = api
        self.judging = create_app(api.parts)
        monkeypatch.setattr(self.judging.state.judged_pairs, "get", lambda key: None)
        monkeypatch.setattr(self.judging.state.networks, "note", lambda call: None)  # nothing would stop it

    async def compare(self, sent: Sent, connection: Connection, key: str) -> int:
        """The second and third answer of both are the same, and so are records and counts. Returns how many
        were leases of judged pairs."""
        path, seen = sent.path.format(id=connection.id), list[tuple[Any, ...]]()
        self.api.app.state.judged_pairs._pairs.clear()
        before = leased(self.api)
        for app in (self.judging, self.api.app):
            first = await sent.to(app, key, path)
            known, counted = len(await self._records()), _counted()
            sent.places.clear()
            answers = [await sent.to(app, key, path) for _ in range(2)]
            assert answers[0] == answers[1] == first, sent.name
            recorded = (await self._records())[known:]
            assert len(sent.places) == (2 if b'"audit"' in first[2] else 0), sent.name
            assert sent.places == [_place_of(record) for record in recorded][: len(sent.places)], sent.name
            records = [self._told(record, sent) for record in recorded]
            seen.append((answers[0], records, _counted() - counted))
        assert seen[0] == seen[1], sent.name
        return leased(self.api) - before

    async def _records(self) -> list[AuditRecord]:
        """All but refusals: each application counts repeated ones by itself."""
        records = await self.api.records()
        records = [record for record in records if record.action is not AuditAction.LEASE_REFUSED]
        return sorted(records, key=lambda record: (record.shard, record.seq))

    def _told(self, record: AuditRecord, sent: Sent) -> tuple[Any, ...]:
        named = {name for name, _ in sent.headers} & {b"traceparent", b"x-request-id"}
        trace = record.context.trace_id if named and "bad" not in sent.name else ""
        return record.action, record.object, record.context.by, trace, record.at, record.detail


def _place_of(record: AuditRecord) -> str:
    return f"{record.shard}/{record.seq}"


def _counted() -> Counter[Any]:
    """All counts of leases, and what is in the histogram of their lifetimes."""
    counted = Counter[Any](metrics.LEASES.values())
    for key, cell in metrics.TIME_TO_EXPIRY.values().items():
        counted.update({(key, bucket): count for bucket, count in enumerate(cell.buckets)})
        counted[key, "sum"] = round(cell.sum)
    return counted


async def put_permit(api: Api, name: str, **changes: Any) -> None:
    """Another permit of the app `pipeline`, or a change of the one with this name."""
    app = await api.app_named("pipeline")
    async with api.worker.write() as tx:
        known = next((it for it in await tx.access.permits_of(app) if it.name == name), None)
        made = {"tenant": TENANT, "id": new_id("per"), "app_id": app.id, "name": name, "integration": "*"}
        made |= {"actions": (Action.TOKEN,), "created_at": api.clock.now()}
        permit = Permit(**{**(known.model_dump() if known else made), **changes})
        await tx.access.put_permit(permit, expected=None if known is None else known.revision)
