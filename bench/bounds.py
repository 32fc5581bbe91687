"""How long and how much one measurement may take."""

from dataclasses import dataclass

QUICK_S = 0.3


@dataclass(frozen=True)
class Bounds:
    """`seconds` for each side of a measurement, and at most `most` operations a round, whichever
    is reached first."""

    seconds: float
    most: int = 100_000

    @classmethod
    def quick(cls) -> "Bounds":
        """Enough to see that everything runs; the figures mean nothing."""
        return cls(QUICK_S, 100)
