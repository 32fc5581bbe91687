"""Builds that are broken on purpose, so that the harness can be seen to fail."""

import ast
from collections.abc import Callable

Change = Callable[[str, ast.Module], None]


def _function(tree: ast.Module, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            return node
    raise LookupError(f"there is no {name} to break any more")


def _body(text: str) -> list[ast.stmt]:
    return ast.parse(text).body


def without_compare_and_set(module: str, tree: ast.Module) -> None:
    """A row is overwritten at any revision."""
    if module == "evergrant_server.store.database.rows":
        where = next(
            node
            for node in ast.walk(_function(tree, "compare_and_set"))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "where"
        )
        where.keywords = [it for it in where.keywords if it.arg != "revision"]


def without_journal(module: str, tree: ast.Module) -> None:
    """An answer goes straight to the database."""
    if module == "activities.single_use.journaled_reply":
        _function(tree, "write_entry").body = _body("return None")


def without_waiting(module: str, tree: ast.Module) -> None:
    """An attempt of unknown outcome is taken over at once."""
    if module == "evergrant_server.core.single_use.attempt":
        _function(tree, "takeover").body = _body("return Takeover.RESEND")


BUILDS: dict[str, Change] = {
    "no-compare-and-set": without_compare_and_set,
    "no-journal": without_journal,
    "no-waiting": without_waiting,
}
