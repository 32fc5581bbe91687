"""`python -m tests.conformance.providers.drift`: what differs between the catalogue and others.

For the catalogue's maintainers (docs/guide/adding-a-provider.md).
"""

import argparse
import json
import sys
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Literal

from evergrant_server.core.errors import Failure
from providers.definition.parsing import parse_yaml
from providers.definition.registry import CATALOG, Registry
from tests.conformance.providers.drift.comparison import CatalogueDrift, compare
from tests.conformance.providers.drift.other_catalogues import OtherCatalogue, read_catalogues


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


def main() -> None:
    """Exits with 1 where a difference is to fail, and where no catalogue can be read."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.providers.drift")
    parser.add_argument("path", type=Path, help="a file with a catalogue, or a folder of them")
    parser.add_argument(
        "--before", type=Path, help="the same at an earlier time: older differences are left out"
    )
    parser.add_argument("--fail", action="store_true", help="exit with 1 when there is a difference")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    arguments = parser.parse_args()
    try:
        same = run(arguments.path, arguments.before, arguments.output)
    except Failure as failure:
        sys.exit(str(failure))
    sys.exit(not same and arguments.fail)


if __name__ == "__main__":
    main()
