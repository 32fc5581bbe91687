"""A copy with changes is checked: pydantic's own `model_copy` takes an unknown field and a wrong type."""

import ast
from pathlib import Path

import pytest
from pydantic import ValidationError

from evergrant_server.core.model import CheckedModel, FrozenModel

PROJECT = Path(__file__).parents[3]


class Token(FrozenModel):
    kind: str
    lifetime_s: int = 0
    scopes: tuple[str, ...] = ()


def test_a_copy_has_the_changes_and_remembers_what_was_set() -> None:
    token = Token(kind="bearer").__replace__(lifetime_s=60)
    assert token == Token(kind="bearer", lifetime_s=60)
    assert token.model_fields_set == {"kind", "lifetime_s"}


def test_a_field_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(TypeError, match="Token has no field lifetime"):
        Token(kind="bearer").__replace__(lifetime=60)  # pyright: ignore[reportCallIssue] refused at run time as well


def test_a_value_of_another_type_is_refused() -> None:
    with pytest.raises(ValidationError, match="lifetime_s"):
        Token(kind="bearer").__replace__(lifetime_s="soon")  # pyright: ignore[reportArgumentType] refused at run time as well


def test_no_model_of_the_product_is_copied_unchecked() -> None:
    roots = ("evergrant_server", "workflows", "activities", "providers")
    modules = [path for root in roots for path in (PROJECT / root).rglob("*.py")]
    unchecked = [f"{path}:{line}" for path in modules for line in _unchecked(path)]
    assert len(modules) > 500
    assert unchecked == []


def _unchecked(path: Path) -> list[int]:
    """Lines with `model_copy(...)`, and with a class whose only base is pydantic's own."""
    lines: list[int] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr == "model_copy":
            lines.append(node.lineno)
        if isinstance(node, ast.ClassDef) and node.name != CheckedModel.__name__:
            lines += [
                node.lineno for base in node.bases if isinstance(base, ast.Name) and base.id == "BaseModel"
            ]
    return lines
