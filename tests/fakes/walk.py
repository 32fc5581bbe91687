"""Which functions of the product one request enters, in API, workflow and worker: traced, not listed.

    with Tracer() as tracer:      # before the API and the worker start
        ...
        tracer.begin()
        answer = await api.post("/v1/lease", ...)
        tracer.end()

A function stands below the one that called it, that awaits it, or that made the task in which it runs.
"""

import asyncio.base_events
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Self

ROOT = Path(__file__).parents[2]
PRODUCT = ("activities", "evergrant_server", "providers", "workflows")
# what runs for every request, and not for this one
BACKGROUND = ("JournalReplayer.run", "OutboxRelay.run", "keep_schedules")
_CREATE_TASK = asyncio.base_events.BaseEventLoop.create_task.__code__
_WRITES_BYTES = "_send_request_headers"  # of httpcore2
_PARTS = ("<genexpr>", "<lambda>", "<listcomp>", "<dictcomp>", "<setcomp>", "<module>")


@dataclass(eq=False)
class Entered:
    """A function that was entered; `traced`: between `begin` and `end`."""

    file: str
    function: str
    parent: "Entered | None"
    traced: bool
    frame: FrameType = field(repr=False)  # kept, so that no other frame gets its id

    @property
    def chain(self) -> list["Entered"]:
        """From the outermost function to this one."""
        return [*(self.parent.chain if self.parent else ()), self]

    def __str__(self) -> str:
        return f"{self.file}: {self.function.replace('<locals>.', '')}"


class Tracer:
    """Traces this thread, and those that are started in its block."""

    def __init__(self) -> None:
        self.entered: list[Entered] = []
        self.first_byte: list[Entered] = []  # the chain that writes a request to a provider
        self._traces = False
        self._known: dict[int, Entered] = {}
        self._made_by: dict[int, tuple[FrameType, Entered | None]] = {}  # the first frame of each task
        self._files: dict[str, str | None] = {}

    def __enter__(self) -> Self:
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def begin(self) -> None:
        self._traces = True

    def end(self) -> None:
        self._traces = False

    def walked(self) -> Iterator[Entered]:
        """What was entered for the request."""
        for step in self.entered:
            if not any(above.function in BACKGROUND for above in step.chain):
                yield step

    def chain_to(self, function: str) -> list[Entered]:
        """The functions that were entered for the request, down to the first call of this one."""
        step = next(step for step in self.walked() if step.function == function)
        return [above for above in step.chain if above.traced]

    def _profile(self, frame: FrameType, event: str, argument: object) -> None:
        if event != "call":
            return
        code = frame.f_code
        file = self._product_file(code)
        if code is _CREATE_TASK:
            made: Any = getattr(frame.f_locals.get("coro"), "cr_frame", None)
            if made is not None:
                self._made_by[id(made)] = made, self._above(frame)
        elif file is not None and code.co_name not in _PARTS and id(frame) not in self._known:
            step = Entered(file, code.co_qualname, self._above(frame), self._traces, frame)
            self._known[id(frame)] = step
            if self._traces:
                self.entered.append(step)
        elif self._traces and not self.first_byte and code.co_name == _WRITES_BYTES:
            above = self._above(frame)
            if above is not None and above.file.startswith("evergrant_server/egress/"):
                self.first_byte = [step for step in above.chain if step.traced]

    def _above(self, frame: FrameType) -> Entered | None:
        """The function below which a new frame stands."""
        here: FrameType | None = frame
        while here is not None:
            if id(here) in self._made_by:
                return self._made_by[id(here)][1]
            here = here.f_back
            if here is not None and id(here) in self._known:
                return self._known[id(here)]
        return None

    def _product_file(self, code: CodeType) -> str | None:
        name = code.co_filename
        if name not in self._files:
            path = Path(name)
            inside = path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PRODUCT
            self._files[name] = str(path.relative_to(ROOT)) if inside else None
        return self._files[name]
