"""`providers check`: the catalogue's problems, for authors of definitions."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from evergrant_server.core.errors import ErrorCode, Failure
from providers.definition.registry import CATALOG
from providers.tools.catalogue_report import VECTORS, CatalogueReport, catalogue_grounds, check_catalogue
from providers.tools.evidence import GROUNDS_HEAD, PARTS


def run(
    catalog: Path | None, vectors: Path | None, output: Literal["text", "json"], *, sources: bool = False
) -> bool:
    """Print the problems and counts, or with `sources` what each entry rests on; True without a problem.

    Raises Failure INVALID_REQUEST.
    """
    for folder in (catalog, vectors):
        if folder is not None and not folder.is_dir():
            raise Failure(ErrorCode.INVALID_REQUEST, f"{folder} is not a folder")
    if sources:
        grounds = catalogue_grounds(catalog or CATALOG, vectors or VECTORS)
        lines = "\n".join([GROUNDS_HEAD, *map(str, grounds)])
        sys.stdout.write(json.dumps([*map(asdict, grounds)], indent=2) if output == "json" else lines)
        sys.stdout.write("\n")
        return True
    report = check_catalogue(catalog or CATALOG, vectors or VECTORS)
    write = _as_json if output == "json" else _as_text
    sys.stdout.write(write(report))
    return not report.problems and report.count > 0


def _as_text(report: CatalogueReport) -> str:
    lines = [str(problem) for problem in (*report.unusable, *report.problems)]
    if report.vectors is not None:
        lines += ["", "evidence of real replies                  source  none found"]
        for part, (sourced, absent) in report.evidence.items():
            lines.append(f"  {PARTS[part]:<38}  {sourced:>6}  {absent:>10}")
        lines.append("")
    vectors = f"{report.vectors} vectors" if report.vectors is not None else "no vectors to check"
    count = len(report.problems)
    lines.append(
        f"{report.count} providers, {report.two_source_share:.0%} with two or more sources, {vectors}, "
        f"{report.unusable_definitions} not usable yet, {count} problem{'s' * (count != 1)}"
    )
    return "\n".join(lines) + "\n"


def _as_json(report: CatalogueReport) -> str:
    problems = [vars(problem) for problem in report.problems]
    body = {
        "count": report.count,
        "share_with_two_sources": round(report.two_source_share, 4),
        "vectors": report.vectors,
        "refused_at_use": report.unusable_definitions,
        "evidence": {part: {"source": n, "none_found": m} for part, (n, m) in report.evidence.items()},
        "unusable": [vars(problem) for problem in report.unusable],
        "problems": problems,
    }
    return json.dumps(body, indent=2) + "\n"
