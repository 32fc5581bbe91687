"""Whether what a workflow received can be read.

Everyone who may write to Temporal's namespace may send anything: `null`, bytes, two arguments, text that no
store holds. A handler that raised would fail the workflow's task again and again, so what can't be read
never reaches one (ADR 0071).
"""

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, cast

from pydantic import BaseModel, Field

from evergrant_server.core.clock import LATEST
from evergrant_server.core.messages.base import Received
from evergrant_server.core.text import is_storable_text

Generation = Annotated[int, Field(ge=0, lt=2**31)]  # of a grant, as a message names it

_LARGEST_NUMBER = 2**53  # JSON's integers are exact below it
_LONGEST_TEXT = 4000  # characters; a run remembers some texts, and its input has a limit of Temporal's


class Unreadable:
    """Stands for an argument that can't be read."""


UNREADABLE: Final = Unreadable()


def is_received(arguments: Sequence[Any]) -> bool:
    """True for what a run, a signal or an update takes: one message that can be read."""
    return len(arguments) == 1 and isinstance(arguments[0], Received)


def is_usable(message: Received) -> bool:
    """True when every value can be computed with and stored: moments have a zone, numbers are finite."""
    left: list[object] = [message]
    while left:
        value = left.pop()
        match value:
            case BaseModel() as model:
                left += vars(model).values()
            case tuple():
                left += cast("tuple[object, ...]", value)
            case str() as text if len(text) > _LONGEST_TEXT or not is_storable_text(text):
                return False
            case datetime() as moment if moment.tzinfo is None or moment > LATEST:
                return False
            case int() | float() as number if not math.isfinite(number) or abs(number) > _LARGEST_NUMBER:
                return False
            case _:
                pass
    return True
