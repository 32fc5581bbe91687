"""What Evergrant's texts say to type is a command of the CLI: in messages, pages and docs."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import App
from evergrant.cli.main import ALIASES, COMMANDS, NOUNS, build_app

ROOT = Path(__file__).parents[4]
FOLDERS = ("evergrant_server", "activities", "workflows", "providers", "clients/python/src", "examples")
PROSE = {"init did", "connect listens"}  # what a command does, no line to type
PASSED_ON = {"explain", "try"}  # of `providers`: to the server's command
LINE = re.compile(
    r"(?<![-\w./@])(?<!-n )(?<!namespace )(?<!--install )evergrant ((?:[a-z][a-z-]+ ?){1,3})"
    r"([^\n`|;&,:(]*?)(?=\.\s|\.$|[\n`|;&,:(\"]|$)"
)
FLAG = re.compile(r"(?<!\S)--[a-z][a-z-]+")


def texts(path: Path) -> Iterator[str]:
    """The texts of a module, with `X` for each value in them, or the whole page."""
    if path.suffix != ".py":
        yield path.read_text(encoding="utf-8")
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inside:
            yield node.value


def lines() -> Iterator[tuple[str, str, str]]:
    """Where, the lower-case words after `evergrant`, and the rest of the line."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "clients").glob("*/README.md")]
    sources = [
        path for folder in FOLDERS for kind in ("*.py", "*.html") for path in (ROOT / folder).rglob(kind)
    ]
    for path in (*pages, *sources):
        if path.name in ("CHANGELOG.md", "examples.py") or "adr" in path.parts:
            continue
        for text in texts(path):
            for match in LINE.finditer(text):
                yield str(path.relative_to(ROOT)), match[1].strip(), match[2]


@pytest.fixture(scope="module")
def app() -> App:
    return build_app()


def options_of(command: App) -> set[str]:
    if command.default_command is None:  # a noun by itself
        return set()
    return {name for argument in command.assemble_argument_collection() for name in argument.names}


def problem(app: App, words: str, rest: str) -> str | None:
    """What no such line could be typed for."""
    first, *further = words.split()
    if first not in {*NOUNS, *COMMANDS, *ALIASES}:
        return f"there is no command {first}"
    names, command, _ = app.parse_commands([first, *further])
    if first in NOUNS and len(names) == 1 and further and app[first].default_command is None:
        return f"{first} has no {further[0]}"
    if first == "providers" and names[-1] in PASSED_ON:
        return None
    known = options_of(command[-1]) | {"--help"}
    return next(
        (f"{' '.join(names)} has no {flag}" for flag in FLAG.findall(rest) if flag not in known), None
    )


@pytest.mark.parametrize(
    ("words", "rest"),
    [("webhooks rotate-secret", "hooks"), ("lst", ""), ("connect", "crm alice --opn"), ("init", "--scpe x")],
)
def test_another_line_is_none(app: App, words: str, rest: str):
    assert problem(app, words, rest) is not None


def test_what_a_text_says_to_type_is_a_command(app: App):
    wrong = [
        f"{place}: evergrant {words} {rest[:60]}: {why}"
        for place, words, rest in lines()
        if " ".join(words.split()[:2]) not in PROSE and (why := problem(app, words, rest)) is not None
    ]
    assert wrong == [], "\n".join(wrong)
