"""A rotation of keys: its kinds, its steps, and which step follows. Pure.

Nothing of it decides whether a key may be destroyed: the transaction that destroys one looks by itself.
"""

from collections.abc import Sequence
from enum import StrEnum

PASSES_WITHOUT_END_S = 3600.0  # after this, keys that a late reply may need are left to the next rotation
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 60.0
ZEROS = 2  # counts in a row, with every transaction of before ended in between
LONGEST_HISTORY = 2_000  # events of one run: about 300 calls, each of which moves for ten seconds


class RotationKind(StrEnum):
    """Whose keys are replaced."""

    TENANT = "tenant"  # a tenant's own: what they wrap and seal moves to the new ones
    CONNECTION = "connection"  # of its connections: what they seal is sealed anew
    ROOT = "root"  # the installation's roots of one purpose: tenants' keys are wrapped anew


class RotationStep(StrEnum):
    ANNOUNCE = "announce"  # a new root is there, and nothing is sealed with it
    HOLD = "hold"  # until every live process holds it
    REPLACE = "replace"  # new keys become the current ones
    MOVE = "move"  # what stands under older ones is brought under these; of a connection: what was left
    COUNT = "count"  # until nothing stands under an older one, twice
    DESTROY = "destroy"  # the older ones


class RotationCommand(StrEnum):
    ROTATE = "rotate"
    REWRAP = "rewrap"
    RETIRE = "retire"


_MOVED = (RotationStep.MOVE, RotationStep.COUNT)
_STEPS = {
    RotationCommand.ROTATE: (RotationStep.REPLACE, *_MOVED, RotationStep.DESTROY),
    RotationCommand.REWRAP: _MOVED,
    RotationCommand.RETIRE: (*_MOVED, RotationStep.DESTROY),
}


def steps_of(command: RotationCommand, kind: RotationKind) -> tuple[RotationStep, ...]:
    """The steps in their order. A root is announced first: processes have to hold what others seal with."""
    steps = _STEPS[command]
    if (command, kind) == (RotationCommand.ROTATE, RotationKind.ROOT):
        return (RotationStep.ANNOUNCE, RotationStep.HOLD, *steps)
    return steps


def next_step(steps: Sequence[RotationStep], step: RotationStep) -> RotationStep | None:
    """The step behind this one; None: it was the last."""
    behind = steps[list(steps).index(step) + 1 :]
    return behind[0] if behind else None


def wait_before_pass(passes: int) -> float:
    """Seconds before a step is repeated for the nth time: twice as long each time, a minute at the most."""
    return min(_FIRST_WAIT_S * 2 ** min(passes, 10), _LONGEST_WAIT_S)
