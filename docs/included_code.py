"""Puts code of the repository into a page: behind `<!-- FILE: imports, NAME -->` stands what the file has.

The prose of such a page is written by hand, and `make docs` writes its code anew.
"""

import ast
import re
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"^<!-- (\S+\.py): ([\w, ]+) -->\n```python\n.*?^```$", re.MULTILINE | re.DOTALL)


def with_code(page: Path) -> str:
    """The page with the code that its marks name. Raises KeyError for a name that a file lacks."""
    return _BLOCK.sub(_block, page.read_text(encoding="utf-8"))


def _block(found: re.Match[str]) -> str:
    path, names = found[1], found[2].split(", ")
    has = _parts((_ROOT / path).read_text(encoding="utf-8"))
    code = "\n\n\n".join(has[name] for name in names)
    return f"<!-- {path}: {found[2]} -->\n```python\n{code}\n```"


def _parts(text: str) -> dict[str, str]:
    """A module's functions and classes by name, and `imports`: what stands above them."""
    lines, body = text.splitlines(), ast.parse(text).body
    docstring, *rest = body
    parts: dict[str, str] = {}
    first = len(lines)
    for node in rest:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            begin = min([node.lineno, *(it.lineno for it in node.decorator_list)]) - 1
            first = min(first, begin)
            parts[node.name] = "\n".join(lines[begin : node.end_lineno])
    return parts | {"imports": "\n".join(lines[docstring.end_lineno : first]).strip()}
