"""Every await of the path, found in the source and given a name, so that none can be forgotten.

An import hook rewrites the modules below while they are loaded, in the harness's processes alone:

    await X              ->  await __point__("activities.grants.refresh:RefreshActivities._refresh#2", X)
    async with X: ...    ->  async with __around__("...#3", X): ...     (two points: .enter and .exit)
    async def f(): ...   ->  the same between entering and leaving, when nothing is awaited in it
    os.fsync(fd)         ->  __step__("...#4", os.fsync, fd)            (in the journal alone)

`passages` is told before and after each; a plan may have it act there.
"""

import ast
import importlib.abc
import importlib.machinery
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

from tests.faults.harness.instrumentation.elsewhere import ELSEWHERE, ELSEWHERE_CALLED
from tests.faults.harness.instrumentation.passages import around, called, point, step

ROOT = Path(__file__).parents[4]

# What a refresh and a code exchange await, from the activity down to the socket. Below `tx` lie single
# statements of a transaction that these modules begin and end: nothing of it is seen before its commit.
PATH = (
    "activities.consents.code_exchange",
    "activities.consents.consent_end",
    "activities.consents.first_grant",
    "activities.grants.client_secrets",
    "activities.grants.narrowing",
    "activities.grants.recurring_errors",
    "activities.grants.refresh",
    "activities.grants.spend",
    "activities.single_use.attempt",
    "activities.single_use.intent",
    "activities.single_use.journal_replay",
    "activities.single_use.pacing",
    "activities.single_use.protocol",
    "activities.support.provider_context",
    "activities.support.temporal",
    "activities.support.transactions",
    "evergrant_server.api.connections.commands",
    "evergrant_server.egress.transport",
    "providers.requests.sender",
)
JOURNAL = "evergrant_server.journal"  # with everything below it

JOURNAL_STEPS = f"{JOURNAL}.reservation"  # its system calls: between two of them a process can die as well

Change = Callable[[ast.Module], None]

# Places that scenarios and verdicts name: by what is awaited there, whatever the function is called.
LABELS = {
    "the request is sent": ("activities.single_use", "self._sender.send("),
    "the library answers": ("providers.requests", "transport.handle_async_request("),
    "the reply is journalled": ("activities.single_use", "journal.in_thread(reservation.write_entry,"),
    "the reply is concluded": ("activities.single_use.protocol", "self.conclude("),
    "a try is counted": ("activities.grants.spend", "_count_for_rollout("),
    "the commit": ("activities.support", "store.write(keys)"),
    "the consent is loaded": ("activities.consents.first_grant", "self._services.store.read()"),
    "the first byte is written": ("evergrant_server.egress", "SendObserver.trace"),
}


@dataclass(frozen=True)
class Point:
    """One place where the path can be left: `module:function#n`, counted within the function."""

    name: str
    kind: str  # "store", "wire", "disk" or "task": who answers there
    line: int
    source: str  # of what is awaited

    @property
    def elsewhere(self) -> str | None:
        """Why it is no point of a refresh or a code exchange; None: it is one."""
        for function, why in ELSEWHERE.items():
            if self.name == function or self.name.startswith((function + "#", function + ".")):
                return why
        return ELSEWHERE_CALLED.get(self.source.partition("(")[0])


def kind_of(module: str, source: str) -> str:
    """Who answers what is awaited here: the database, the provider, or another task of ours."""
    words = set(re.findall(r"\w+\b(?!=)", source))  # names of arguments say nothing
    if source.startswith("commit_with_retries("):
        return "task"  # it tries again what the store loses
    if module == JOURNAL_STEPS:
        return "task" if "close" in words else "disk"  # a closed file can't be closed again
    if module.startswith(("evergrant_server.egress", "providers")):
        return "task" if "aclose" in words or ".aclose" in module else "wire"
    return "store" if words & {"tx", "read", "write", "unwrap_keys"} else "task"


class Marker(ast.NodeTransformer):
    """Names the points of one module and has `passages` told of them."""

    def __init__(self, module: str) -> None:
        self.points: list[Point] = []
        self._module = module
        self._inside: list[str] = []
        self._counted: dict[str, int] = {}

    def _point(self, node: ast.AST, awaited: ast.expr | None, part: str = "") -> str:
        function = f"{self._module}:{'.'.join(self._inside)}"
        if part in ("", ".enter"):
            self._counted[function] = self._counted.get(function, 0) + 1
        name = f"{function}#{self._counted[function]}{part}"
        source = ast.unparse(awaited) if awaited is not None else ""
        kind = kind_of(self._module, source or self._inside[-1])
        self.points.append(Point(name, kind, getattr(node, "lineno", 0), source))
        return name

    def _within(self, node: Any) -> ast.AST:
        self._inside.append(node.name)
        self.generic_visit(node)
        self._inside.pop()
        return node

    visit_ClassDef = _within  # noqa: N815  the visitor's own naming
    visit_FunctionDef = _within  # noqa: N815  the visitor's own naming

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        if any(ast.unparse(it) == "abstractmethod" for it in node.decorator_list):
            return node  # it has no body to leave
        before = len(self.points)
        self._within(node)
        if len(self.points) == before:  # its caller awaits it: it counts as a point
            self._inside.append(node.name)
            name = self._point(node, None)
            self._inside.pop()
            item = ast.withitem(_call("__called__", name))
            node.body = [ast.With(items=[item], body=node.body, type_comment=None)]
        return node

    def visit_Await(self, node: ast.Await) -> ast.AST:
        name = self._point(node, node.value)
        self.generic_visit(node)
        node.value = _call("__point__", name, node.value)
        return node

    def visit_AsyncWith(self, node: ast.AsyncWith) -> ast.AST:
        for item in node.items:
            enter = self._point(node, item.context_expr, ".enter")
            self._point(node, item.context_expr, ".exit")
            name = enter.removesuffix(".enter")
            item.context_expr = _call("__around__", name, self.visit(item.context_expr))
        node.body = [self.visit(statement) for statement in node.body]
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if self._module != JOURNAL_STEPS or not self._inside or not ast.unparse(node).startswith("os."):
            return node
        step = _call("__step__", self._point(node, node), node.func, *node.args)
        step.keywords = node.keywords
        return step

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        if node.is_async:
            raise NotImplementedError(f"{self._module}: an async comprehension has no name yet")
        self.generic_visit(node)
        return node

    def visit_AsyncFor(self, node: ast.AsyncFor) -> ast.AST:
        """Each step awaits: the stream it iterates over is the wire's, and is read in one go."""
        self._point(node, node.iter)
        function = f"{self._module}:{'.'.join(self._inside)}"
        name = f"{function}#{self._counted[function]}"
        self.generic_visit(node)
        node.iter = _call("__each__", name, node.iter)
        return node


def _call(function: str, name: str, *more: ast.expr) -> ast.Call:
    return ast.Call(func=ast.Name(function, ast.Load()), args=[ast.Constant(name), *more], keywords=[])


def on_path(module: str) -> bool:
    return module in PATH or module == JOURNAL or module.startswith(JOURNAL + ".")


def marked(module: str, source: str) -> tuple[ast.Module, list[Point]]:
    """The module's tree with its points marked, and the points."""
    tree = ast.parse(source)
    marker = Marker(module)
    return ast.fix_missing_locations(marker.visit(tree)), marker.points


@cache
def existing() -> tuple[Point, ...]:
    """Every point there is, from the source alone."""
    journal = sorted((ROOT / JOURNAL.replace(".", "/")).glob("*.py"))
    modules = [*PATH, *(f"{JOURNAL}.{it.stem}" for it in journal if it.stem != "__init__")]
    found: list[Point] = []
    for module in modules:
        text = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        found += marked(module, text)[1]
    return tuple(found)


def labelled(label: str, side: str = "") -> str:
    """The name of the point with this label; `side` is `.enter` or `.exit` of a block. The first one, where
    several await the same."""
    within, awaited = LABELS[label]
    for place in existing():
        is_there = place.source.startswith(awaited) or (not place.source and awaited in place.name)
        if place.name.startswith(within) and is_there and place.name.endswith(side or tuple("0123456789")):
            return place.name
    raise LookupError(f"{label}: nothing in {within} awaits {awaited}")


class Hook(importlib.abc.MetaPathFinder):
    """Loads the modules of the path with their points marked, and those that a build changes."""

    def __init__(self, changes: Mapping[str, Change] | None = None, *, mark: bool = True) -> None:
        """`changes`: what is done to the trees of these modules."""
        self._changes = changes or {}
        self._mark = mark

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        change, mark = self._changes.get(name), self._mark and on_path(name)
        if not mark and change is None:
            return None  # from its bytecode
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or not isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            return None
        spec.loader = _Loader(spec.loader.name, spec.loader.path, change, mark)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, change: Change | None, mark: bool) -> None:
        super().__init__(name, path)
        self._module, self._change, self._mark = name, change, mark

    def get_code(self, fullname: str) -> CodeType | None:
        """Without a cache: only these processes may run what is compiled here."""
        source = Path(self.path).read_text(encoding="utf-8")
        tree = ast.parse(source)
        if self._change is not None:
            self._change(tree)
        if self._mark:
            tree = Marker(self._module).visit(tree)
        return compile(ast.fix_missing_locations(tree), self.path, "exec")

    def exec_module(self, module: Any) -> None:
        module.__dict__.update(
            __point__=point, __around__=around, __called__=called, __each__=each, __step__=step
        )
        super().exec_module(module)


async def each(name: str, stream: Any) -> Any:
    iterator = aiter(stream)
    while True:
        try:
            item = await point(name, anext(iterator))
        except StopAsyncIteration:
            return
        yield item


def install(changes: Mapping[str, Change]) -> None:
    """From here on modules are loaded marked. Refuses when one of them is loaded already."""
    loaded = [name for name in sys.modules if on_path(name) or name in changes]
    if loaded:
        raise RuntimeError(f"loaded before the hook: {loaded}")
    sys.meta_path.insert(0, Hook(changes))
