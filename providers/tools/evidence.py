"""What is known of a provider's real replies: the sources of its vector, and their recorded absence.

A source is a public page, issue or file that a reader can open. A vector's part without one, or with
one that begins with "unverified", repeats the definition and proves nothing about the provider.
"""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from providers.definition.schema import ProviderSpec

PARTS = {
    "success": "the tokens of a code",
    "refresh": "the tokens of a refresh",
    "dead_token": "the refusal of a dead refresh token",
    "client": "the refusal of a wrong client",
    "passing": "an error that passes",
}
_REFUSALS = ("dead_token", "client", "passing")
_CODES = {  # the code that a refusal of this kind is read as
    "dead_token": {"grant_rejected"},
    "dead_code": {"grant_rejected", "consent_expired"},
    "subject": {"grant_rejected", "consent_denied"},
    "client": {"client_rejected"},
    "passing": {"provider_error", "provider_rate_limited", "refresh_pending"},
}


def sourced_parts(vector: dict[str, Any]) -> frozenset[str]:
    """The parts of a vector that have a source."""
    places = {"success": "exchange", "refresh": "refresh"}
    sourced = {part for part, place in places.items() if _is_sourced(vector.get(place))}
    refusals = vector.get("refusals")
    if isinstance(refusals, list):
        sourced |= {str(each.get("of")) for each in refusals if _is_sourced(each)} & PARTS.keys()
    return frozenset(sourced)


def absent_parts(vector: dict[str, Any]) -> frozenset[str]:
    """The parts for which a search found no public evidence."""
    named = vector.get("none_found")
    return frozenset(map(str, named)) if isinstance(named, list) else frozenset()


def _is_sourced(part: Any) -> bool:
    return isinstance(part, dict) and not str(part.get("source", "unverified")).startswith("unverified")


def evidence_problems(vector: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Refusals of another kind, and kinds without either evidence or a recorded absence.

    The vector has its shape: `vector_shape` has found no mistake.
    """
    refusals = vector.get("refusals", [])
    for place, refusal in enumerate(refusals):
        code, right = refusal["code"], _CODES[refusal["of"]]
        if code not in right and not refusal.get("undecidable"):
            problem = f"is {code}, but a {refusal['of']} is read as {' or '.join(sorted(right))}"
            yield (
                f"refusals.{place}.code",
                problem,
                "Mend it and the definition, or say why not in undecidable",
            )
    sourced, absent = sourced_parts(vector), absent_parts(vector)
    for part in _REFUSALS:
        if part in absent & sourced:
            yield "none_found", f"has {part}, which has a source", "Remove it"
        if refusals and part not in absent | sourced:
            yield "none_found", f"lacks {part}, which has no source", "Find a real reply, or add it"


@dataclass(frozen=True)
class Grounds:
    """What an entry rests on."""

    provider: str
    token_endpoint: int  # independent sources that agree on it
    by_field: tuple[str, ...]  # fields with a source of their own
    vendor_only: tuple[str, ...]  # fields that the vendor alone documents
    refusals: int
    sourced_refusals: int
    changed: str | None  # the date of the last change to definition or vector; None: no history here

    def __str__(self) -> str:
        refusals = f"{self.sourced_refusals}/{self.refusals}"
        return (
            f"{self.provider:<28} {self.token_endpoint:>8} {len(self.by_field):>7} {len(self.vendor_only):>7}"
            f" {refusals:>9}  {self.changed or 'unknown'}"
        )


GROUNDS_HEAD = f"{'provider':<28} {'agreeing':>8} {'sourced':>7} {'vendor':>7} {'refusals':>9}  last change"


def grounds_of(spec: ProviderSpec, vector: dict[str, Any] | None, changed: str | None) -> Grounds:
    refusals = (vector or {}).get("refusals") or []
    return Grounds(
        provider=spec.name,
        token_endpoint=spec.sources.agreeing.get("token_endpoint", 0),
        by_field=tuple(sorted(spec.sources.by_field)),
        vendor_only=tuple(sorted(spec.sources.vendor_documentation)),
        refusals=len(refusals),
        sourced_refusals=sum(map(_is_sourced, refusals)),
        changed=changed,
    )


def last_changes(*folders: Path) -> dict[str, str]:
    """By a file's name without its ending, the date of its last change in the checkout's history, if any."""
    command = ["git", "log", "--no-merges", "--format=%cs", "--name-only", "--", *map(str, folders)]
    try:
        log = subprocess.run(command, capture_output=True, text=True, cwd=folders[0], timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    changes: dict[str, str] = {}
    date = ""
    for line in filter(None, log.stdout.splitlines()):
        if line.endswith(".yaml"):
            changes.setdefault(Path(line).stem, date)
        else:
            date = line
    return changes
