"""A provider definition of a tenant: proposed, checked, decided, and rolled out in stages. Pure.

A version that replaces another serves a share of the connections first. A refresh that fails with
it is repeated with the version before, and counted; the counts decide whether it rolls on or back.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from pydantic import ConfigDict, Field, StrictFloat, StrictInt

from evergrant_server.core.ids import DefinitionId, TenantRow
from evergrant_server.core.model import CheckedModel, FrozenModel

_CHECKS_PER_STAGE = 4
_SHORTEST_CHECK_INTERVAL_S = 1.0
LONGEST_STAGE = 24  # a stage that sees too little ends after this many times its length, or is held
HELD_CHECK_INTERVAL_S = 21_600.0  # seconds between two looks at one that is held: its history grows with each


class DefinitionState(StrEnum):
    """Where a version of a definition is."""

    CHECKING = "checking"  # a worker runs the checks
    WAITING = "waiting"  # without a problem; an admin decides
    UNSOUND = "unsound"  # a check found a problem; the admin proposes another version
    REJECTED = "rejected"
    STAGED = "staged"  # serves a share of the connections, and is evaluated
    ACTIVE = "active"  # serves all
    ROLLED_BACK = "rolled_back"
    REPLACED = "replaced"  # a newer version is active

    @property
    def serves(self) -> bool:
        return self in (DefinitionState.STAGED, DefinitionState.ACTIVE)

    @property
    def in_progress(self) -> bool:
        """Its workflow still has something to do."""
        return self in (DefinitionState.CHECKING, DefinitionState.WAITING, DefinitionState.STAGED)


class CheckLevel(StrEnum):
    OK = "ok"
    WARNING = "warning"  # for the admin who decides
    PROBLEM = "problem"  # can't be approved


HOSTS_CHECK = "hosts"  # the check of where secrets go


class CheckResult(FrozenModel):
    """The result of one check. No secret: hosts, statuses and names of fields."""

    check: str
    level: CheckLevel
    detail: str


class Rollout(CheckedModel):
    """How a version replaces another. `stage_s` is seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shares: tuple[StrictFloat, ...] = Field(default=(0.05, 0.25, 1.0), min_length=1, max_length=20)
    stage_s: StrictFloat = Field(default=3600, ge=0, le=2_592_000, allow_inf_nan=False)
    enough: StrictInt = Field(default=20, ge=0)  # refreshes that a stage needs
    most_bad: StrictFloat = Field(default=0.1, ge=0, le=1, allow_inf_nan=False)

    @property
    def check_interval_s(self) -> float:
        """Seconds between two evaluations of a stage."""
        return max(self.stage_s / _CHECKS_PER_STAGE, _SHORTEST_CHECK_INTERVAL_S)

    def model_post_init(self, context: Any, /) -> None:
        rising = all(a < b for a, b in zip(self.shares, self.shares[1:], strict=False))
        if not rising or self.shares[0] <= 0 or self.shares[-1] != 1:
            raise ValueError("shares rise from above 0 to 1")


class Definition(TenantRow):
    """One version of a provider's definition, for one tenant. It comes before the catalogue's."""

    id: DefinitionId
    name: str
    version: int
    document: dict[str, Any]
    state: DefinitionState = DefinitionState.CHECKING
    share: float = 0
    rollout: Rollout = Rollout()
    findings: tuple[CheckResult, ...] = ()
    succeeded: int = 0  # refreshes in this stage that worked
    failed: int = 0  # and those that had to be repeated with the version before
    proposed_by: str
    decided_by: str | None = None
    approved: bool | None = None
    reason: str | None = None
    created_at: datetime
    changed_at: datetime

    @property
    def changes_secret_hosts(self) -> bool:
        """A check found that secrets would go to other hosts than now."""
        return any(
            finding.check == HOSTS_CHECK and finding.level is CheckLevel.WARNING for finding in self.findings
        )

    def serves(self, identity: str | None) -> bool:
        """True when this version answers for `identity`; None: only what answers for all does."""
        if not self.state.serves:
            return False
        return self.share >= 1 if identity is None else _rollout_position(self.id, identity) < self.share

    def with_checks(self, findings: Sequence[CheckResult], at: datetime) -> "Definition":
        unsound = any(finding.level is CheckLevel.PROBLEM for finding in findings)
        state = DefinitionState.UNSOUND if unsound else DefinitionState.WAITING
        return self.__replace__(changed_at=at, state=state, findings=tuple(findings))

    def with_decision(self, by: str, reason: str | None, at: datetime, *, approved: bool) -> "Definition":
        """An admin has decided; the workflow carries it out."""
        return self.__replace__(changed_at=at, decided_by=by, approved=approved, reason=reason)

    def rejected(self, at: datetime, reason: str | None = None) -> "Definition":
        return self.__replace__(changed_at=at, state=DefinitionState.REJECTED, reason=self.reason or reason)

    def started(self, at: datetime, *, replaces: bool) -> "Definition":
        """The first stage; the first version of a provider is active at once."""
        if not replaces:
            return self.__replace__(changed_at=at, state=DefinitionState.ACTIVE, share=1.0)
        return self._staged(self.rollout.shares[0], at)

    def advanced(self, at: datetime) -> "Definition":
        """The next stage; after the last it is active."""
        larger = [share for share in self.rollout.shares if share > self.share]
        if not larger:
            return self.__replace__(changed_at=at, state=DefinitionState.ACTIVE)
        return self._staged(larger[0], at)

    def rolled_back(self, reason: str, at: datetime) -> "Definition":
        return self.__replace__(changed_at=at, state=DefinitionState.ROLLED_BACK, share=0.0, reason=reason)

    def replaced(self, at: datetime) -> "Definition":
        return self.__replace__(changed_at=at, state=DefinitionState.REPLACED, share=0.0)

    def _staged(self, share: float, at: datetime) -> "Definition":
        return self.__replace__(
            changed_at=at, state=DefinitionState.STAGED, share=share, succeeded=0, failed=0
        )


class RolloutVerdict(StrEnum):
    WAIT = "wait"
    ROLL_ON = "roll on"
    ROLL_BACK = "roll back"
    HOLD = "hold"  # no evidence yet, for longer than a stage should last: looked at more rarely


_MIN_FAILURES = 3  # one or two may be the provider's fault


def judge_rollout(staged: Definition, now: datetime) -> RolloutVerdict:
    """What the counts of the stage say. Too many failures end it at once; too few refreshes prolong it.

    A stage without a refresh for long goes on to a larger share. A version becomes active only after
    a refresh has worked: at the last share it is held, staged.
    """
    seen = staged.succeeded + staged.failed
    bad = staged.failed > staged.rollout.most_bad * seen
    if staged.failed >= _MIN_FAILURES and bad:
        return RolloutVerdict.ROLL_BACK
    stage = timedelta(seconds=staged.rollout.stage_s)
    if now < staged.changed_at + stage:
        return RolloutVerdict.WAIT
    asks_for_none = staged.rollout.enough == 0
    if seen >= staged.rollout.enough and (staged.succeeded or asks_for_none):
        return RolloutVerdict.ROLL_ON
    if now < staged.changed_at + stage * LONGEST_STAGE:
        return RolloutVerdict.WAIT
    works = staged.succeeded > 0 and not bad
    unused = seen == 0 and staged.share < 1
    return RolloutVerdict.ROLL_ON if works or unused else RolloutVerdict.HOLD


def serving_versions(versions: Sequence[Definition], identity: str | None) -> tuple[Definition | None, ...]:
    """The version that answers for `identity`, and while it is staged the one that did before.

    None stands for the catalogue's own. With one element there is no version to fall back on.
    """
    serving = sorted(
        (version for version in versions if version.serves(identity)), key=lambda version: -version.version
    )
    if not serving:
        return (None,)
    newest = serving[0]
    if newest.state is DefinitionState.ACTIVE:
        return (newest,)
    return (newest, serving[1] if len(serving) > 1 else None)


def _rollout_position(id: str, identity: str) -> float:
    """A connection's position in [0, 1): the same in every stage of a version, another in the next."""
    digest = hashlib.sha256(f"{id}:{identity}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64
