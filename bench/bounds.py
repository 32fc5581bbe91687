"""The limits of one measurement."""

from dataclasses import dataclass

QUICK_S = 0.3


@dataclass(frozen=True)
class Bounds:
    """Each side stops after `seconds`, and each round after `most` operations."""

    seconds: float
    most: int = 100_000

    @classmethod
    def quick(cls) -> "Bounds":
        """Enough to see that everything runs; the figures are meaningless."""
        return cls(QUICK_S, 100)
