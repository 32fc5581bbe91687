"""Carries out a plan: each change is sent, told when it is done, and repeated by no later run."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from evergrant.cli.configuration.folder import Described, Folder
from evergrant.cli.configuration.kinds import BY_NAME, Key, Row
from evergrant.cli.configuration.plan import Change, Step, changes, counts, located, named_by, to_send
from evergrant.cli.options import line_to_copy
from evergrant.cli.tables import Format, printable
from evergrant.errors import EvergrantError
from evergrant.sync_client import Evergrant

_SIGNS = {"create": "+", "change": "~", "prune": "-"}
_DONE = {"create": "created", "change": "changed", "prune": "pruned"}
_WAITS = frozenset({"approval_required", "approval_outdated"})
# members of an integration with which the stored secret doesn't stay, so that no rotation comes before them
_MOVES = frozenset({"provider", "issuer", "params", "client_id", "client_auth", "registration"})
_SIGNING = {"webhook": "webhooks", "stream": "streams"}


class Incomplete(EvergrantError):
    """Some of the changes are made, and others wait for somebody."""

    default_code = "apply_incomplete"


@dataclass
class Report:
    """What a run says: a line for each object at once, or all of them as one value at the end."""

    output: Format
    told: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def planned(self, step: Step) -> None:
        approval = " (a second admin has to approve it)" if step.needs_approval else ""
        self._say(step, f"{_SIGNS[step.change]} {step.key}{approval}")
        for line in _lines(step):
            self._line(f"    {line}")

    def done(self, step: Step, row: Row | None) -> None:
        self._say(step, f"{_DONE[step.change]} {step.key}", done=True)
        if row is not None and row.get("problem"):
            self._line(f"    {row['problem']}")
        if row is not None and step.change == "create" and row.get("redirect_uri"):
            self._line(f"    redirect URI: {row['redirect_uri']}")
        if step.change == "create" and (noun := _SIGNING.get(step.key.kind)):
            command = line_to_copy("evergrant", noun, "rotate", step.key.name)
            self._line(f"    its signing secret isn't shown here; for a new one: {command}")

    def waits(self, step: Step, why: str, approval_id: str | None = None) -> None:
        self._say(step, f"waits   {step.key}: {why}", done=False, waits_for=approval_id or why)

    def end(self, summary: Mapping[Change, int], words: str) -> None:
        if self.output is Format.TABLE:
            print(words, flush=True)
            return
        value = {"objects": self.told, **summary}
        print(
            json.dumps(value, indent=2)
            if self.output is Format.JSON
            else yaml.safe_dump(value, sort_keys=False, allow_unicode=True),
            end="\n" if self.output is Format.JSON else "",
        )

    def _say(self, step: Step, line: str, **further: object) -> None:
        members = {name: {"before": before, "after": after} for name, (before, after) in step.members.items()}
        self.told.append(
            {
                "kind": step.key.kind,
                "name": "/".join(step.key.names),
                "change": step.change,
                "members": members,
                "secrets": sorted(step.secrets),
                "needs_approval": step.needs_approval,
                **further,
            }
        )
        self._line(line)

    def _line(self, line: str) -> None:
        if self.output is Format.TABLE:
            print(printable(line), flush=True)


def tell_plan(steps: Iterable[Step], report: Report) -> int:
    """Tell what would change; returns how many objects that are."""
    steps = list(steps)
    for step in changes(steps):
        report.planned(step)
    if report.output is Format.TABLE:
        _tell_uncompared(steps)
    totals = counts(steps)
    words = ("{create} to create, {change} to change, {prune} to prune, {unchanged} unchanged").format(
        **totals
    )
    report.end(totals, words)
    return len(changes(steps))


def carry_out(client: Evergrant, folder: Folder, steps: Iterable[Step], report: Report) -> None:
    """Send each change. What waits for somebody keeps nothing else from being done, but what names it.

    Raises EvergrantError for the first change that is refused, and Incomplete; both say what a rerun does.
    """
    steps = list(steps)
    todo, unfinished, approvals = changes(steps), set[Key](), list[str]()
    done: list[Step] = []
    for step in todo:
        blocked = [key for key in _named(step.described) if key in unfinished]
        if blocked:
            report.waits(step, f"{blocked[0]} comes first")
            unfinished.add(step.key)
            continue
        try:
            row = _send(client, folder, step)
        except EvergrantError as error:
            if error.code not in _WAITS:
                _tell_end(report, steps, done, len(todo) - len(done) - len(unfinished))
                raise _explained(error, step, any_done=bool(done)) from None
            approvals.append(str(error.context.get("approval_id")))
            report.waits(step, f"another admin runs: evergrant approvals give {approvals[-1]}", approvals[-1])
            unfinished.add(step.key)
        else:
            done.append(step)
            report.done(step, row)
    _tell_end(report, steps, done, 0)
    if unfinished:
        why = f"{len(unfinished)} of {len(todo)} changes wait, {len(approvals)} of them for a second admin"
        raise Incomplete(why, repair="Run it again once they are approved: what is done stays done.")


def _named(described: Described | None) -> Iterable[Key]:
    return () if described is None else named_by(described)


def _send(client: Evergrant, folder: Folder, step: Step) -> Row | None:
    """Send one change; returns the object after it."""
    kind, key = BY_NAME[step.key.kind], step.key
    if step.values is None:
        getattr(client, kind.delete or "")(*key.names)
        return None
    sent = to_send(kind, step.values, step.before)
    has_secret = step.before is not None and step.before.get("has_client_secret")
    if "client_secret" in step.secrets and has_secret and not _MOVES & step.members.keys():
        # with an overlap, in which the provider may know either
        client.rotate_client_secret(key.name, sent.pop("client_secret"))
        if not step.members and len(step.secrets) == 1:
            return None
    managed = {} if folder.owner is None else {"managed_by": folder.owner}
    return client.send(kind.call(key, sent, **managed)).row


def _explained(error: EvergrantError, step: Step, *, any_done: bool) -> EvergrantError:
    """The error of a change, with its line in the folder."""
    if step.described is not None:
        error = located(error, step.described)
    else:
        error.detail = f"{step.key}: {error.detail}"
    if any_done:
        error.repair = f"{error.repair} Then run it again: what is done stays done."
    return error


def _tell_end(report: Report, steps: list[Step], done: list[Step], left: int) -> None:
    totals = counts(done)
    totals["unchanged"] = counts(steps)["unchanged"]
    words = "{create} created, {change} changed, {prune} pruned, {unchanged} unchanged".format(**totals)
    report.end(totals, f"{words}, {left} not made" if left else words)


def _tell_uncompared(steps: Iterable[Step]) -> None:
    for step in steps:
        for name, variable in step.uncompared.items():
            print(f"  not compared: {name} of {step.key} ({variable} isn't set)", flush=True)


def _lines(step: Step) -> Iterable[str]:
    for name, (before, after) in step.members.items():
        yield (
            f"{name}: {_word(after)}" if step.before is None else f"{name}: {_word(before)} → {_word(after)}"
        )
    for name in sorted(step.secrets if step.before is not None else ()):
        yield f"{name}: another secret"


def _word(value: object) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
