"""Builds that are broken on purpose, so that the harness can be seen to fail."""

import ast

from tests.faults.harness.instrumentation.points import Change


def _function(tree: ast.Module, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            return node
    raise LookupError(f"there is no {name} to break any more")


def _body(text: str) -> list[ast.stmt]:
    return ast.parse(text).body


def without_compare_and_set(tree: ast.Module) -> None:
    """A row is overwritten at any revision."""
    _function(tree, "_update_statement").body = _body(
        """same = (table.c[name] == bindparam(f"read_{name}") for name in key)
any_revision = table.c.revision * 0 <= bindparam("read_revision")
return update(table).where(*same, any_revision).values({name: bindparam(name) for name in names})"""
    )


def without_journal(tree: ast.Module) -> None:
    """An answer goes straight to the database."""
    _function(tree, "write_reply_to_journal").body = _body("return None")


def without_waiting(tree: ast.Module) -> None:
    """An attempt of unknown outcome is taken over at once."""
    _function(tree, "decide_resend").body = _body("return ResendDecision.RESEND")


BUILDS: dict[str, tuple[str, Change]] = {
    "no-compare-and-set": ("evergrant_server.store.database.rows", without_compare_and_set),
    "no-journal": ("activities.single_use.attempt", without_journal),
    "no-waiting": ("evergrant_server.core.single_use.attempt", without_waiting),
}
"""The module that a build breaks, and how."""
