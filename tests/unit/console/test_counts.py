"""No page says "1 connections": what is counted goes through one filter."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from jinja2 import Environment, nodes

from evergrant_server.console.pages import FOLDER
from evergrant_server.console.times import counted

TEMPLATES = sorted((FOLDER / "templates").rglob("*.html"))
_THINGS = (
    "apps? calls? changes? clients? commands? connections? controls? days? detections? events? grants? "
    "hours? integrations? keys? leases? lines? minutes? permits? people providers? questions? records? "
    "refreshes requests? revocations? rows? scopes? sessions? subjects? times? tokens? webhooks?"
).replace(" ", "|")
_THING = re.compile(rf"(?:</\w+>)? (?:\w+ )?(?:{_THINGS})\b")
_SEVERAL = re.compile(r"(?:</\w+>)? (?!is\b|was\b|has\b|as\b)(?:more )?[a-z]+s\b")


@pytest.mark.parametrize(
    ("number", "words", "shown"),
    [
        (1, ("connection",), "1 connection"),
        (0, ("connection",), "0 connections"),
        (1200, ("refresh", "refreshes"), "1,200 refreshes"),
        (2, ("waits", "wait"), "2 wait"),
        (24.0, ("hour",), "24 hours"),
        (1.5, ("hour",), "1.5 hours"),
    ],
)
def test_one_is_told_from_many(number: float, words: tuple[str, ...], shown: str):
    assert counted(number, *words) == shown


def faults(source: str) -> Iterator[str]:
    """Numbers beside a noun or a verb that isn't chosen by them, and endings that are added by hand."""
    yield from re.findall(r"""["'](?:e?s|y|ies)["'] if [^}]*|else ["'](?:e?s|y|ies)["']""", source)
    for output in Environment(autoescape=True).parse(source).find_all(nodes.Output):
        for number, text in zip(output.nodes, output.nodes[1:], strict=False):
            printed = not isinstance(number, nodes.TemplateData) and isinstance(text, nodes.TemplateData)
            if printed and _is_bare(number, text.data):
                yield f"{number} {text.data[:30]!r}"


def _is_bare(number: nodes.Node, text: str) -> bool:
    """Whether the noun that follows is the same for every number."""
    parts = [number, *number.find_all((nodes.Const, nodes.Filter))]
    filters = {part.name for part in parts if isinstance(part, nodes.Filter)}
    formats = {part.value for part in parts if isinstance(part, nodes.Const)}
    is_count = "length" in filters or "{:,}" in formats
    return "counted" not in filters and bool((_SEVERAL if is_count else _THING).match(text))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_every_count_of_a_template_is_told_from_one(template: Path):
    assert list(faults(template.read_text("utf-8"))) == []


def test_the_walk_finds_them():
    assert list(faults('{{ rows | length }} row{{ "s" if rows != 1 }}'))
    assert list(faults('<p>{{ "{:,}".format(number) }} <b>connections</b>')) == []
    assert list(faults("{{ order.selected }} connections"))
    assert not list(faults('{{ order.selected | counted("connection") }}, {{ name }} decides'))
