"""Which functions of the product one request enters, in API, workflow and worker: traced, not listed.

    with Tracer() as tracer:      # before the API and the worker start
        ...
        tracer.begin()
        answer = await api.post("/v1/lease", ...)
        walk = tracer.end()

A function stands below the one that called it, awaits it, or made the task that it runs in. Where a request
leaves one process for another, `HANDOVERS` says who goes on for whom.
"""

import asyncio.base_events
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Self

ROOT = Path(__file__).parents[2]
PRODUCT = ("activities", "evergrant_server", "providers", "workflows")
CREATE_TASK = asyncio.base_events.BaseEventLoop.create_task.__code__
FIRST_BYTE = ("httpcore2/_async/http11.py", "_send_request_headers")
# what goes on for every request, and not for this one
BACKGROUND = (
    "JournalReplayer.run",
    "OutboxRelay.run",
    "OutboxRelay._run",
    "keep_schedules",
    "Inbox.events",
)
# the function that goes on in another process -> the one whose request it carries out
HANDOVERS = {
    "ConnectionWorkflow.ensure_fresh": "TemporalLink.ensure_fresh",
    "ConnectionWorkflow._handle": "ConnectionWorkflow.ensure_fresh",
    "execute_activity": "ActivityCall.__call__",
}


@dataclass(eq=False)
class Entered:
    """A function that was entered."""

    file: str
    function: str
    parent: "Entered | None"
    frame: FrameType | None = field(repr=False)
    traced: bool  # since `begin`

    @property
    def chain(self) -> list["Entered"]:
        """From the outermost function to this one."""
        above = self.parent.chain if self.parent else []
        return [*above, self]

    def __str__(self) -> str:
        return f"{self.file}: {self.function}"


class Tracer:
    """Traces the threads that are started in its block."""

    def __init__(self) -> None:
        self._on = False
        self._known: dict[int, Entered] = {}
        self._makers: dict[int, tuple[Any, Entered | None]] = {}
        self.entered: list[Entered] = []
        self.first_byte: list[Entered] | None = None

    def __enter__(self) -> Self:
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]

    def begin(self) -> None:
        self._on = True
        self.entered = []

    def end(self) -> None:
        self._on = False

    def _profile(self, frame: FrameType, event: str, argument: object) -> None:
        if event != "call":
            return
        code = frame.f_code
        if code is CREATE_TASK:
            coroutine = frame.f_locals.get("coro")
            made = getattr(coroutine, "cr_frame", None)
            if made is not None:
                self._makers[id(made)] = made, self._above(frame)
            return
        file = product_file(code)
        if file is None:
            if self._on and self.first_byte is None and code.co_name == FIRST_BYTE[1]:
                if code.co_filename.endswith(FIRST_BYTE[0]):
                    above = self._above(frame)
                    if above is not None and "GuardedTransport" in above.function:
                        self.first_byte = above.chain
            return
        if code.co_name in ("<genexpr>", "<lambda>", "<listcomp>", "<dictcomp>", "<setcomp>", "<module>"):
            return
        if id(frame) in self._known:
            return
        parent = self._above(frame)
        if parent is None and id(frame) in self._makers:
            parent = self._makers[id(frame)][1]
        step = Entered(file, code.co_qualname, parent, frame, self._on)
        self._known[id(frame)] = step
        if self._on:
            self.entered.append(step)

    def _above(self, frame: FrameType) -> Entered | None:
        back = frame.f_back
        outermost = frame
        while back is not None:
            step = self._known.get(id(back))
            if step is not None:
                return step
            if id(back) in self._makers:
                return self._makers[id(back)][1]
            back = back.f_back
        return None


_files: dict[str, str | None] = {}


def product_file(code: CodeType) -> str | None:
    name = code.co_filename
    if name not in _files:
        path = Path(name)
        inside = path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PRODUCT
        _files[name] = str(path.relative_to(ROOT)) if inside else None
    return _files[name]
