"""`providers check`: the catalogue looked at, for whoever adds to it."""

import json
import sys
from pathlib import Path
from typing import Literal

from evergrant_server.core.errors import ErrorCode, Failure
from providers.definition.registry import CATALOG
from providers.tools.catalogue_report import VECTORS, CatalogueReport, check_catalogue


def report_catalogue(catalog: Path | None, vectors: Path | None, output: Literal["text", "json"]) -> bool:
    """Print what is wrong, or that nothing is. True when nothing is. Raises Failure INVALID_REQUEST."""
    for folder in (catalog, vectors):
        if folder is not None and not folder.is_dir():
            raise Failure(ErrorCode.INVALID_REQUEST, f"{folder} is no folder")
    found = check_catalogue(catalog or CATALOG, vectors or VECTORS)
    write = _as_json if output == "json" else _as_text
    sys.stdout.write(write(found))
    return not found.problems and found.count > 0


def _as_text(found: CatalogueReport) -> str:
    lines = [str(it) for it in found.unusable] + [str(problem) for problem in found.problems]
    vectors = f"{found.vectors} vectors" if found.vectors is not None else "no vectors here to look at"
    count = len(found.problems)
    lines.append(
        f"{found.count} providers, {found.two_source_share:.0%} with two or more sources, {vectors}, "
        f"{found.unusable_definitions} not usable yet, {count} problem{'s' * (count != 1)}"
    )
    return "\n".join(lines) + "\n"


def _as_json(found: CatalogueReport) -> str:
    problems = [vars(problem) for problem in found.problems]
    body = {
        "count": found.count,
        "share_with_two_sources": round(found.two_source_share, 4),
        "vectors": found.vectors,
        "refused_at_use": found.unusable_definitions,
        "unusable": [vars(it) for it in found.unusable],
        "problems": problems,
    }
    return json.dumps(body, indent=2) + "\n"
