"""Messages made from their types, for tests that walk all of them."""

from datetime import UTC, datetime
from enum import Enum
from types import UnionType
from typing import Any, Union, get_args, get_origin

from evergrant_server.core.messages.base import Message, Provenance, RequestContext
from evergrant_server.core.messages.connection import ConnectionStart
from tests.workflows.connection_runs import ASKED, a_start

NOW = datetime.now(UTC)


def sample(message: type[Message]) -> dict[str, Any]:
    """A message of this type that can be read, as JSON."""
    if message is ConnectionStart:
        return a_start().model_dump(mode="json")
    values = {name: _value(it.annotation) for name, it in message.model_fields.items() if it.is_required()}
    return message.model_validate(values).model_dump(mode="json")


def _value(kind: Any) -> Any:
    kind = plain_type(kind)
    if kind is RequestContext:
        return ASKED
    if kind is Provenance:
        return Provenance(workflow_id="w", run_id="r", event_id=1)
    if issubclass(kind, Enum):
        return next(iter(kind))
    return {str: "acme", int: 1, float: 0.5, datetime: NOW}[kind]


def plain_type(kind: Any) -> Any:
    """The type without what a NewType, Annotated or `| None` adds."""
    while True:
        if get_origin(kind) in (Union, UnionType):
            kind = next(it for it in get_args(kind) if it is not type(None))
        elif get_origin(kind) is not None and not isinstance(get_origin(kind), type):
            kind = get_args(kind)[0]
        elif hasattr(kind, "__metadata__"):
            kind = kind.__origin__
        elif hasattr(kind, "__supertype__"):
            kind = kind.__supertype__
        else:
            return kind if get_origin(kind) is None else get_origin(kind)
