"""What a folder changes: each object compared with what the API has, by a dry run of its PUT."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from evergrant.api.models import AuditRecord
from evergrant.cli.configuration.folder import Described, Folder, InvalidConfiguration
from evergrant.cli.configuration.kinds import BY_NAME, KINDS, Key, Kind, Row
from evergrant.cli.configuration.secrets import Values, values_of
from evergrant.errors import EvergrantError
from evergrant.sync_client import Evergrant

Change = Literal["create", "change", "prune", "unchanged"]
_URLS = ("url",)  # required, and answered without their query


@dataclass(frozen=True, slots=True)
class Step:
    """What becomes of one object. `members` are those that change, before and after, without secrets;
    `secrets` are secrets that change, `uncompared` those whose variable isn't set."""

    change: Change
    key: Key
    described: Described | None = None
    values: Values | None = None
    before: Row | None = None
    members: Mapping[str, tuple[Any, Any]] = field(default_factory=dict[str, tuple[Any, Any]])
    secrets: frozenset[str] = frozenset()
    uncompared: Mapping[str, str] = field(default_factory=dict[str, str])
    needs_approval: bool = False


class Existing:
    """What the API has, each kind read once."""

    def __init__(self, client: Evergrant) -> None:
        self._client = client
        self._rows: dict[tuple[str, str | None], dict[str, Row]] = {}

    def rows(self, kind: Kind, parent: str | None = None) -> dict[str, Row]:
        """The objects of a kind, by name; those of a parent that isn't there are none."""
        if parent is not None and kind.parent is not None and parent not in self.rows(BY_NAME[kind.parent]):
            return {}
        if (kind.name, parent) not in self._rows:
            self._rows[kind.name, parent] = kind.rows(self._client, parent)
        return self._rows[kind.name, parent]

    def row(self, key: Key) -> Row | None:
        return self.rows(BY_NAME[key.kind], key.parent).get(key.name)


def plan(client: Evergrant, folder: Folder, *, prune: bool) -> list[Step]:
    """The steps in their order. Changes nothing. Raises EvergrantError for what the API would refuse."""
    existing, created = Existing(client), set[Key]()
    steps: list[Step] = []
    for described in in_order(folder):
        step = _compared(client, existing, created, described)
        if step.change == "create":
            created.add(described.key)
        steps.append(step)
    if prune:
        steps.extend(_to_prune(client, existing, folder))
    return steps


def in_order(folder: Folder) -> list[Described]:
    """What an object names comes before it."""
    order = [kind.name for kind in KINDS]
    ordered: dict[Key, Described] = {}
    begun: set[Key] = set()

    def add(described: Described) -> None:
        if described.key in begun:
            return
        begun.add(described.key)
        for key in named_by(described):
            if key in folder.objects:
                add(folder.objects[key])
        ordered[described.key] = described

    for described in sorted(folder.objects.values(), key=lambda each: order.index(each.key.kind)):
        add(described)
    return list(ordered.values())


def named_by(described: Described) -> Iterator[Key]:
    """The objects that have to be there before this one."""
    kind, key = BY_NAME[described.key.kind], described.key
    if kind.parent is not None and key.parent is not None:
        yield Key(kind.parent, None, key.parent)
    for named_kind, name in kind.references(described.fields):
        if isinstance(name, str) and name:
            yield Key(named_kind, None, name)


def located(error: EvergrantError, described: Described) -> EvergrantError:
    """The error with the line of the member that the API names."""
    name = error.context.get("field")
    path = [int(part) if part.isdigit() else part for part in str(name or "").split(".") if part]
    why = error.detail.removeprefix(f"{name}: ")
    named = f": {name}" if name else ""
    error.detail = f"{described.source.place(*path)}: {described.key}{named}: {why}"
    return error


def _compared(client: Evergrant, existing: Existing, created: set[Key], described: Described) -> Step:
    """One object as the API would have it, beside what it has."""
    key, kind = described.key, BY_NAME[described.key.kind]
    before, values = existing.row(key), values_of(described)
    from_file = _from_file(described, values, before)
    sent = to_send(kind, values, before)
    if any(kind.fields[name].is_required for name in values.missing if name not in sent):
        return from_file
    try:
        answer = client.send(kind.call(key, sent, dry_run="true"))
    except EvergrantError as error:
        if _only_waits(error, kind) and any(named in created for named in named_by(described)):
            return from_file  # the API judges it once that is there
        raise located(error, described) from None
    if before is None:
        return replace(from_file, needs_approval=answer.needs_approval)
    members = kind.changed(before, answer.row)
    secrets = answer.secrets | (values.secrets & members.keys())
    members = {name: both for name, both in members.items() if name not in secrets}
    change: Change = "change" if members or secrets else "unchanged"
    needs_approval = answer.needs_approval and change == "change"
    return Step(change, key, described, values, before, members, secrets, values.missing, needs_approval)


def _from_file(described: Described, values: Values, before: Row | None) -> Step:
    """What the file alone says of an object."""
    shown = {name: value for name, value in values.sent.items() if name not in values.secrets}
    rows = before or {}
    members = {name: (rows.get(name), value) for name, value in shown.items() if rows.get(name) != value}
    change: Change = "create" if before is None else "change" if members else "unchanged"
    return Step(change, described.key, described, values, before, members, uncompared=values.missing)


def _only_waits(error: EvergrantError, kind: Kind) -> bool:
    """Whether the API misses an object that this one names."""
    return error.code == "not_found" or error.context.get("field") in kind.naming


def to_send(kind: Kind, values: Values, before: Row | None) -> dict[str, Any]:
    """The members of the PUT: those of the folder, and what stays as it is where the folder doesn't say."""
    kept = () if before is None else (*kind.kept, *(name for name in _URLS if name in values.missing))
    return {**{name: before[name] for name in kept if before and before.get(name)}, **values.sent}


def _to_prune(client: Evergrant, existing: Existing, folder: Folder) -> Iterator[Step]:
    """What an earlier apply of this owner has made and the folder has no more, what depends on it first."""
    if folder.owner is None:
        why = "the folder names no owner, and only what an apply of the same owner made is pruned"
        raise InvalidConfiguration(why, repair="Write owner: NAME at the top of one of its files.")
    if folder.is_one_file:
        why = "-f names one file, and everything that the others describe would be pruned"
        raise InvalidConfiguration(why, repair="Name the folder with -f.")
    if not folder.objects:
        why = "the folder describes nothing, so everything that it made would be pruned"
        raise InvalidConfiguration(why, repair="Check -f; delete the last objects by hand.")
    gone: set[Key] = set()
    for kind in reversed(KINDS):
        if kind.delete is None:
            continue
        for key, row in _all_of(existing, kind):
            if key not in folder.objects and _is_made_by(client, kind, existing, key, row, folder.owner):
                gone.add(key)
    within = {
        key for key in gone if key.parent and Key(BY_NAME[key.kind].parent or "", None, key.parent) in gone
    }
    for kind in reversed(KINDS):
        yield from (Step("prune", key) for key in sorted(gone - within) if key.kind == kind.name)


def _all_of(existing: Existing, kind: Kind) -> Iterator[tuple[Key, Row]]:
    parents: Iterable[str | None] = (None,) if kind.parent is None else existing.rows(BY_NAME[kind.parent])
    for parent in parents:
        for name, row in existing.rows(kind, parent).items():
            yield Key(kind.name, parent, name), row


def _is_made_by(client: Evergrant, kind: Kind, existing: Existing, key: Key, row: Row, owner: str) -> bool:
    """Whether the audit record of the object's first PUT names the owner. One whose record is gone isn't."""
    object_id = row["id"]
    if kind.name == "security-events":  # recorded about their integration
        object_id = existing.rows(BY_NAME["integration"])[key.parent or ""]["id"]
    records: Iterable[AuditRecord] = client.audit_records(action=kind.action, object=object_id)
    first = next(
        (record for record in records if record.detail.get("receiver", row["id"]) == row["id"]), None
    )
    return first is not None and first.detail.get("managed_by") == owner


def counts(steps: Iterable[Step]) -> dict[Change, int]:
    totals: dict[Change, int] = dict.fromkeys(("create", "change", "prune", "unchanged"), 0)
    for step in steps:
        totals[step.change] += 1
    return totals


def changes(steps: Iterable[Step]) -> list[Step]:
    return [step for step in steps if step.change != "unchanged"]
