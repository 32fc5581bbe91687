"""A cache of a bounded size that forgets one entry at a time."""

from collections import OrderedDict
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Bounded(OrderedDict[K, V]):
    """At most `most` entries: setting one more forgets the one that was set longest ago.

    Emptied whole, a full cache has every caller load anew at once. An OrderedDict, because a dict that
    loses its first entry again and again searches ever longer for the next.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > self._most:
            self.popitem(last=False)
