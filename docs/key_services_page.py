"""The page `reference/key-services.md`: every case of the conformance suite, and what it ran against."""

import ast
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.fakes.key_services.acts import BACKENDS, REASONS, Backend, Case

ROOT = Path(__file__).parents[1]
SUITE = ROOT / "tests/conformance/key_services/test_key_services.py"
Table = Callable[[tuple[str, ...], Iterable[tuple[str, ...]]], list[str]]


def page(note: str, table: Table) -> str:
    columns = ("case", *(backend.title for backend in BACKENDS))
    lines = [
        note,
        "# Key services: what ran against what",
        "",
        "The conformance suite of [key services](../security/key-services.md) runs the same tests on all of",
        "them. A failure is the service's own, brought about by its admin's API or by stopping it; one with",
        "an asterisk is a reply that was written after the service's documentation. After each, the same",
        "process opens again what it wrapped before.",
        "",
        *table(
            columns,
            [("ran against", *(backend.against for backend in BACKENDS)), *_of_values(), *_of_failures()],
        ),
        "",
    ]
    return "\n".join(lines)


def _of_values() -> Iterable[tuple[str, ...]]:
    """The tests that run on every service alike."""
    for node in ast.parse(SUITE.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AsyncFunctionDef) and "every_service" in map(
            ast.unparse, node.decorator_list
        ):
            name = node.name.removeprefix("test_").replace("_", " ").replace("purposes key", "purpose's key")
            yield (name, *("yes" for _ in BACKENDS))


def _of_failures() -> Iterable[tuple[str, ...]]:
    for case in Case:
        yield (f"{case}: {REASONS[case]}", *(_cell(backend, case) for backend in BACKENDS))


def _cell(backend: Backend, case: Case) -> str:
    titles = [f"{act.title}{' *' if act.is_scripted else ''}" for act in backend.acts if act.case is case]
    return "<br>".join(titles) or f"none: {dict(backend.without)[case]}"
