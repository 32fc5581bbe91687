"""What happens where a point is passed: nothing, a record, or the fault that was planned there."""

import os
import signal
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel

BEFORE, AFTER = "before", "after"


class Fault(BaseModel):
    """A fault at the n-th passage of a point, counted from 1."""

    point: str
    kind: str  # "die", "stop", "lost", "cut" or "keys"
    side: str = BEFORE
    passage: int = 1
    answered_by: str = "task"
    lasts: bool = False  # at every later passage as well


class FaultInjector:
    """The points that this process has passed, and what is planned for it."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str, float]] = []  # point, side, monotonic seconds
        self.plan: list[Fault] = []
        self.tell: Callable[[Fault], None] = lambda fault: None
        self.cut: Callable[[], None] = lambda: None
        self.keys: Callable[[], None] = lambda: None
        self.lost: Callable[[Fault], Exception | None] = lambda fault: None
        self._times: dict[tuple[str, str], list[float]] = defaultdict(list)

    def start(self, plan: list[Fault]) -> None:
        self.log, self.plan = [], list(plan)
        self._times.clear()

    def times(self, name: str, side: str) -> list[float]:
        """When this process passed it, in this case."""
        return self._times[name, side]

    def passed(self, name: str, side: str) -> Exception | None:
        """Count it and do what is planned; returns what the one who awaits shall hear instead."""
        at = time.monotonic()
        self._times[name, side].append(at)
        self.log.append((name, side, at))
        for fault in self.plan:
            if (fault.point, fault.side) != (name, side):
                continue
            count = len(self._times[name, side])
            if count == fault.passage or (fault.lasts and count > fault.passage):
                return self._strike(fault)
        return None

    def _strike(self, fault: Fault) -> Exception | None:
        self.tell(fault)
        match fault.kind:
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "cut":
                self.cut()
            case "keys":
                self.keys()
            case _:
                return self.lost(fault)
        return None


passages = FaultInjector()


async def point(name: str, awaited: Awaitable[Any]) -> Any:
    """Await it, and pass the point."""
    passages.passed(name, BEFORE)
    try:
        result = await awaited
    except Exception:  # some answers are raised
        lost_reply = passages.passed(name, AFTER)
        if lost_reply is not None:
            raise lost_reply from None
        raise
    except BaseException:
        passages.passed(name, AFTER)
        raise
    lost_reply = passages.passed(name, AFTER)
    if lost_reply is not None:
        raise lost_reply
    return result


class _Around:
    def __init__(self, name: str, inner: Any) -> None:
        self._name, self._inner = name, inner

    async def __aenter__(self) -> Any:
        name = f"{self._name}.enter"
        passages.passed(name, BEFORE)
        value = await self._inner.__aenter__()
        lost_reply = passages.passed(name, AFTER)
        if lost_reply is not None:
            await self._inner.__aexit__(type(lost_reply), lost_reply, None)
            raise lost_reply
        return value

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> Any:
        name = f"{self._name}.exit"
        passages.passed(name, BEFORE)
        quiet = await self._inner.__aexit__(kind, error, trace)
        lost_reply = passages.passed(name, AFTER)
        if lost_reply is not None and error is None:
            raise lost_reply
        return quiet


def step(name: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """A system call, in any thread."""
    passages.passed(name, BEFORE)
    result = call(*arguments, **named)
    lost_reply = passages.passed(name, AFTER)
    if lost_reply is not None:
        raise lost_reply
    return result


def around(name: str, inner: Any) -> _Around:
    return _Around(name, inner)


@contextmanager
def called(name: str) -> Generator[None]:
    """An async function that awaits nothing: its caller awaits it."""
    passages.passed(name, BEFORE)
    yield
    lost_reply = passages.passed(name, AFTER)
    if lost_reply is not None:
        raise lost_reply
