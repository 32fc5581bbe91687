"""What became of each line: counted, failures by number, and what a rehearsal would make."""

import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from evergrant.api.imports import ImportOutcome, ImportStatus
from evergrant.cli.options import Options
from evergrant.cli.tables import Format, printable, show_one, show_rows
from evergrant.grant_files import InvalidLine, ParsedLine

_MAX_REPORTED = 1000  # failed lines in the JSON report; all of them are counted
_MAX_INTEGRATIONS = 100  # in the table: a column that was mistaken for the integration's has thousands
_MAX_SCOPES = 20
_COUNTED = ("imported", "would_import", "exists", "invalid", "skipped", "verified", "unverified", "failed")
_COLUMNS = ("integration", "new", "exists", "refused", "refresh_tokens", "expiry_unknown", "scopes")
_LIKE_A_TOKEN = re.compile(r"(?=[\w-]*[0-9])[\w-]{20,}")  # a run of letters with digits


@dataclass
class _Integration:
    """The lines of one integration."""

    new: int = 0
    exists: int = 0
    refused: int = 0
    missing: int = 0  # of the refused: the integration is not here
    refresh_tokens: int = 0
    expiry_unknown: int = 0
    own_scopes: int = 0
    scopes: Counter[str] = field(default_factory=Counter[str])

    def add(self, item: Mapping[str, object], outcome: ImportOutcome) -> None:
        if outcome.status is ImportStatus.INVALID:
            self.refused += 1
            self.missing += outcome.code == "not_found"
            return
        if outcome.status is ImportStatus.EXISTS:
            self.exists += 1
            return
        self.new += 1
        self.refresh_tokens += bool(item.get("refresh_token"))
        self.expiry_unknown += item.get("expires") == "unknown"
        if isinstance(scopes := item.get("scopes"), list):
            self.own_scopes += 1
            self.scopes.update(str(scope) for scope in cast(list[object], scopes))

    def row(self, name: str) -> dict[str, object]:
        names = [hidden(scope) for scope, _ in self.scopes.most_common(_MAX_SCOPES)]
        if len(self.scopes) > _MAX_SCOPES:
            names.append(f"and {len(self.scopes) - _MAX_SCOPES} more")
        if self.new > self.own_scopes:
            names.append("(the integration's)")
        return {
            **{name: getattr(self, name) for name in _COLUMNS if name not in ("integration", "scopes")},
            "integration": name,
            "scopes": names,
        }


@dataclass
class Report:
    """The outcomes of a file's lines, counted, and the failures by line number."""

    path: str
    as_json: bool
    rehearsal: bool
    mapping: Mapping[str, str] = field(default_factory=dict[str, str])
    counts: Counter[str] = field(default_factory=Counter[str])
    skipped: Counter[str] = field(default_factory=Counter[str])
    failures: list[dict[str, object]] = field(default_factory=list[dict[str, object]])
    last_line: int = 0
    _integrations: dict[str, _Integration] = field(default_factory=dict[str, _Integration])

    def add(self, line: ParsedLine, outcome: ImportOutcome) -> None:
        self.last_line = line.number
        self.counts[outcome.status.value] += 1
        if outcome.verification is not None:
            self.counts[outcome.verification] += 1
        if outcome.failed:
            self._add_failure(line.number, outcome.code or "unknown", outcome.detail or "")
        if self.rehearsal:
            name = hidden(str(line.item.get("integration") or "-"))
            if name in self._integrations or len(self._integrations) < _MAX_INTEGRATIONS:
                self._integrations.setdefault(name, _Integration()).add(line.item, outcome)

    def add_invalid(self, line: InvalidLine) -> None:
        self.last_line = line.number
        self.counts[ImportStatus.INVALID.value] += 1
        self._add_failure(line.number, line.code, line.detail)

    def add_skipped(self, reason: str) -> None:
        self.counts["skipped"] += 1
        self.skipped[reason] += 1

    def _add_failure(self, number: int, code: str, detail: str) -> None:
        if len(self.failures) < _MAX_REPORTED:
            self.failures.append({"line": number, "code": code, "detail": detail})
        if not self.as_json:
            print(f"{self.path}:{number}: {code}: {printable(detail)}", file=sys.stderr)

    def show(self, seconds: float, options: Options) -> None:
        row: dict[str, object] = {name: self.counts[name] for name in _COUNTED}
        row["seconds"] = round(seconds, 1)
        plan = [each.row(name) for name, each in sorted(self._integrations.items())]
        if options.output is not Format.TABLE:
            row["skipped_because"] = dict(self.skipped)
            row["failures"] = sorted(self.failures, key=lambda failure: str(failure["line"]).zfill(12))
            if self.rehearsal:
                row["integrations"], row["read_from"] = plan, dict(self.mapping)
            show_one(row, options.output)
            return
        if self.rehearsal:
            self._explain(plan)
        show_one(row, options.output)
        for reason, number in self.skipped.most_common():
            print(f"{self.path}: skipped {number}: {reason}", file=sys.stderr)

    def _explain(self, plan: list[dict[str, object]]) -> None:
        """What would be made of what, and what is missing for it."""
        if self.mapping:
            rows = ({"member": name, "read_from": where} for name, where in self.mapping.items())
            show_rows(rows, ("member", "read_from"), Format.TABLE)
            print()
        show_rows(plan, _COLUMNS, Format.TABLE)
        print()
        for name, each in self._integrations.items():
            if each.missing:
                repair = f"evergrant integrations put {name} …, or rename it: --integration {name}=OURS"
                problem = f"no integration {name} is here (lines: {each.missing})"
                print(f"{self.path}: {problem}: {repair}", file=sys.stderr)
            if each.new and not each.refresh_tokens:
                print(f"{self.path}: no line of {name} has a refresh token", file=sys.stderr)

    @property
    def status(self) -> int:
        return 1 if self.counts["invalid"] or self.counts["failed"] else 0


def hidden(name: str) -> str:
    """The name, unless it may be a token that stood in another column than was meant."""
    return "…" if len(name) > 100 or _LIKE_A_TOKEN.search(name) else name
