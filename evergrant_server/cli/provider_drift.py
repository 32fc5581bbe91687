"""`providers drift`: the differences between the catalogue and others, for its maintainers."""

import json
import sys
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Literal

from providers.definition.parsing import parse_yaml
from providers.definition.registry import CATALOG, Registry
from providers.tools.drift.comparison import CatalogueDrift, compare
from providers.tools.drift.other_catalogues import OtherCatalogue, read_catalogues


def run(path: Path, before: Path | None, output: Literal["text", "json"]) -> bool:
    """Print the differences; True without one. Raises Failure INVALID_REQUEST."""
    catalogues = read_catalogues(path)
    earlier = read_catalogues(before) if before is not None else None
    specs = {spec.name: spec for spec in Registry.load().all()}
    documents = {name: parse_yaml((CATALOG / f"{name}.yaml").read_text(encoding="utf-8")) for name in specs}
    drift = compare(specs, documents, catalogues)
    if earlier is not None:
        known = {
            (difference.provider, difference.field, difference.theirs)
            for difference in compare(specs, documents, earlier).differences
        }
        drift.differences = [
            difference
            for difference in drift.differences
            if (difference.provider, difference.field, difference.theirs) not in known
        ]
    sys.stdout.write((_as_json if output == "json" else _as_text)(drift, catalogues))
    return not drift.differences


def _as_text(drift: CatalogueDrift, catalogues: OtherCatalogue) -> str:
    lines: list[str] = []
    ordered = sorted(
        drift.differences, key=lambda difference: (difference.provider, difference.field, difference.source)
    )
    for provider, differences in groupby(ordered, key=lambda difference: difference.provider):
        lines.append(provider)
        for difference in differences:
            lines += [
                f"  {difference.field}",
                f"    ours    {difference.ours}",
                f"    theirs  {difference.theirs}  ({difference.source})",
            ]
    lines += [f"skipped: {file} {why}" for file, why in catalogues.skipped]
    found_at = len({difference.provider for difference in drift.differences})
    lines.append(
        f"{drift.compared} entries compared: {len(drift.differences)} differences at {found_at} providers; "
        f"{len(drift.only_theirs)} names only in the others, {len(drift.only_ours)} only in ours"
    )
    return "\n".join(lines) + "\n"


def _as_json(drift: CatalogueDrift, catalogues: OtherCatalogue) -> str:
    skipped = [{"file": file, "why": why} for file, why in catalogues.skipped]
    return json.dumps({**asdict(drift), "skipped": skipped}, indent=2) + "\n"
