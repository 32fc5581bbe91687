"""What a scripted server answers: with what it would do itself, or with trouble."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Answer:
    """One step of a script."""

    acts: bool = True
    answers: bool = True
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None  # None: what acting gives
    fields: Mapping[str, Any] = field(default_factory=dict)
    wait: "asyncio.Event | float | None" = None
    wait_first: bool = True
    then: "Answer | None" = None
    drips_s: float = 0.0  # the reply is sent a byte at a time, over so many seconds


def written(data: Any, fields: Mapping[str, Any]) -> bytes:
    """What acting gives, as a body: JSON, or bytes as they are."""
    if isinstance(data, bytes):
        return data
    return b"" if data is None else json.dumps({**data, **fields}).encode()


def ok(**fields: Any) -> Answer:
    return Answer(fields=fields)


def status(code: int, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(acts=False, status=code, headers=headers or {}, body=b"")


def error(name: str, code: int = 400) -> Answer:
    return raw(json.dumps({"error": name}).encode(), code, {"Content-Type": "application/json"})


def html(code: int = 200) -> Answer:
    return raw(b"<!doctype html><title>Sorry</title>", code, {"Content-Type": "text/html"})


def raw(body: bytes, code: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(acts=False, status=code, headers=headers or {}, body=body)


def drop() -> Answer:
    return Answer(acts=False, answers=False)


def drop_after_commit() -> Answer:
    return Answer(answers=False)


def delay(until: "asyncio.Event | float", then: Answer | None = None) -> Answer:
    return Answer(wait=until, then=then or ok())


def drip(over_s: float) -> Answer:
    return Answer(drips_s=over_s)


def hold_answer(until: asyncio.Event) -> Answer:
    return Answer(wait=until, wait_first=False)
