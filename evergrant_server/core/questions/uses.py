"""Who was handed tokens of a connection: the records of its uses, summed up by app."""

from dataclasses import dataclass, field
from datetime import datetime

from evergrant_server.core.audit import AuditRecord
from evergrant_server.core.questions.questions import USES

_MOST_NAMED = 50  # of what is listed for one app
_USES = frozenset(USES)


@dataclass
class AppUses:
    """What one app was handed of one connection. `by` are the callers, `acts_for` whom it acted for."""

    first_at: datetime
    last_at: datetime
    uses: int = 0
    first_generation: int | None = None
    last_generation: int | None = None
    actions: dict[str, int] = field(default_factory=dict[str, int])
    by: dict[str, int] = field(default_factory=dict[str, int])
    permits: dict[str, int] = field(default_factory=dict[str, int])
    scopes: set[str] = field(default_factory=set[str])
    acts_for: list[object] = field(default_factory=list[object])
    last_record: str = ""

    def add(self, record: AuditRecord) -> None:
        detail = record.detail
        self.first_at, self.last_at = min(self.first_at, record.at), max(self.last_at, record.at)
        self.uses += 1
        _count(self.actions, record.action.value)
        _count(self.by, record.context.by)
        if isinstance(permit := detail.get("permit"), str):
            _count(self.permits, permit)
        if isinstance(generation := detail.get("generation"), int):
            self.first_generation = min(self.first_generation or generation, generation)
            self.last_generation = max(self.last_generation or generation, generation)
        if len(self.scopes) < _MOST_NAMED:
            self.scopes.update(str(scope) for scope in detail.get("scopes") or ())
        acts_for = detail.get("acts_for")
        if acts_for and acts_for not in self.acts_for and len(self.acts_for) < _MOST_NAMED:
            self.acts_for.append(acts_for)
        self.last_record = f"{record.shard}/{record.seq}"

    def facts(self) -> dict[str, object]:
        """As JSON: times as text, sets in order."""
        return {
            **vars(self),
            "first_at": self.first_at.isoformat(),
            "last_at": self.last_at.isoformat(),
            "scopes": sorted(self.scopes),
        }


def sum_up(sums: dict[str, AppUses], records: list[AuditRecord], app_id: str | None = None) -> None:
    """Add the uses among these records to the sums by the app's id; with `app_id` those of this app."""
    for record in records:
        if record.action not in _USES:
            continue
        app = str(record.detail.get("app") or record.context.by)
        if app_id is None or app == app_id:
            sums.setdefault(app, AppUses(record.at, record.at)).add(record)


def _count(counts: dict[str, int], name: str) -> None:
    if name in counts or len(counts) < _MOST_NAMED:
        counts[name] = counts.get(name, 0) + 1
