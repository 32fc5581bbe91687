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
    other = read_catalogues(path)
    earlier = read_catalogues(before) if before is not None else None
    specs = {spec.name: spec for spec in Registry.load().all()}
    documents = {name: parse_yaml((CATALOG / f"{name}.yaml").read_text(encoding="utf-8")) for name in specs}
    drift = compare(specs, documents, other)
    if earlier is not None:
        known = {(it.provider, it.field, it.theirs) for it in compare(specs, documents, earlier).differences}
        drift.differences = [
            it for it in drift.differences if (it.provider, it.field, it.theirs) not in known
        ]
    sys.stdout.write((_as_json if output == "json" else _as_text)(drift, other))
    return not drift.differences


def _as_text(drift: CatalogueDrift, other: OtherCatalogue) -> str:
    lines: list[str] = []
    ordered = sorted(drift.differences, key=lambda it: (it.provider, it.field, it.source))
    for provider, found in groupby(ordered, key=lambda it: it.provider):
        lines.append(provider)
        for it in found:
            lines += [f"  {it.field}", f"    ours    {it.ours}", f"    theirs  {it.theirs}  ({it.source})"]
    lines += [f"skipped: {file} {why}" for file, why in other.skipped]
    found_at = len({it.provider for it in drift.differences})
    lines.append(
        f"{drift.compared} entries compared: {len(drift.differences)} differences at {found_at} providers; "
        f"{len(drift.only_theirs)} names only in the others, {len(drift.only_ours)} only in ours"
    )
    return "\n".join(lines) + "\n"


def _as_json(drift: CatalogueDrift, other: OtherCatalogue) -> str:
    skipped = [{"file": file, "why": why} for file, why in other.skipped]
    return json.dumps({**asdict(drift), "skipped": skipped}, indent=2) + "\n"
