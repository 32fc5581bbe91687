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
        _function(tree, "_update_statement").body = _body(
            """same = (table.c[name] == bindparam(f"read_{name}") for name in key)
any_revision = table.c.revision * 0 <= bindparam("read_revision")
return update(table).where(*same, any_revision).values({name: bindparam(name) for name in names})"""
        )


def without_journal(module: str, tree: ast.Module) -> None:
    """An answer goes straight to the database."""
    if module == "activities.single_use.attempt":
        _function(tree, "write_reply_to_journal").body = _body("return None")


def without_waiting(module: str, tree: ast.Module) -> None:
    """An attempt of unknown outcome is taken over at once."""
    if module == "evergrant_server.core.single_use.attempt":
        _function(tree, "decide_resend").body = _body("return ResendDecision.RESEND")


BUILDS: dict[str, Change] = {
    "no-compare-and-set": without_compare_and_set,
    "no-journal": without_journal,
    "no-waiting": without_waiting,
}
