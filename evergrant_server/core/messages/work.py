"""What a row of the table of jobs says of an activity, and of a job, which has a run of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from types import UnionType
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from evergrant_server.core.messages.base import Message, RequestMessage

RequestT = TypeVar("RequestT", bound=Message)
ResultT = TypeVar("ResultT")
CommandT = TypeVar("CommandT", bound=RequestMessage)  # a request of a caller, who waits for the result

SECOND, MINUTE, HOUR, DAY = (timedelta(seconds=seconds) for seconds in (1, 60, 3600, 86_400))


@dataclass(frozen=True)
class Limits:
    """Of one try, from its start, and of the waits between tries. `tries` 0: for as long as it takes."""

    timeout: timedelta
    heartbeat: timedelta | None = None
    tries: int = 0
    first_wait: timedelta = SECOND
    longest_wait: timedelta = SECOND * 30


class TurnKey(NamedTuple):
    """Whose turn an activity takes: of a tenant, and of a part of it, which share a worker's slots.

    `part` is what a call that hangs is likely to have in common with others.
    """

    tenant: str
    part: str = ""

    @classmethod
    def of_tenant(cls, request: Any) -> "TurnKey":
        return cls(request.tenant)

    @classmethod
    def of_integration(cls, request: Any) -> "TurnKey":
        return cls(request.tenant, request.integration_id or "")

    @classmethod
    def of_webhook(cls, request: Any) -> "TurnKey":
        return cls(request.tenant, request.webhook_id)

    @classmethod
    def of_installation(cls, request: Any) -> "TurnKey":
        """A pass over all tenants takes a turn of none of them."""
        return cls("")


@dataclass(frozen=True)
class Activity(Generic[RequestT, ResultT]):
    """One row. `summary` is what the Temporal UI shows of a call.

    A failure of the provider, the client or the subject comes back as a result, so that `core` decides about
    it. What an activity raises is the platform's own trouble, which Temporal retries.

    `turn` None: it calls nobody outside, and a worker's egress refuses to send anything for it. `urgent`
    False: it waits in the task queue behind the others.
    """

    name: str
    request: type[RequestT]
    result: type[ResultT] | UnionType | None  # None where it returns nothing
    limits: Limits
    summary: str | Callable[[RequestT], str]
    turn: Callable[[RequestT], TurnKey] | None = None
    urgent: bool = True


class Intervals(Protocol):
    """The settings that say how often jobs recur."""

    @property
    def reconcile_interval(self) -> timedelta: ...
    @property
    def metadata_interval(self) -> timedelta: ...
    @property
    def introspection_interval(self) -> timedelta: ...
    @property
    def detect_interval(self) -> timedelta: ...


@dataclass(frozen=True)
class Recurrence:
    """How often a job recurs, and the request of each run. `at_once`: also when its schedule is new."""

    request: Message
    interval: Callable[[Intervals], timedelta]
    at_once: bool = False


@dataclass(frozen=True, kw_only=True)
class Job(Activity[RequestT, ResultT]):
    """An activity with a run of its own, whose workflow type is the job's name.

    A schedule starts one with a `recurrence`, and names its runs; `following` makes a run's request of the
    result before it. The outbox or a waiting caller starts any other, under an id of `id_parts`; a second
    request for an id whose run is open joins that run. `once`: an id is good for one run. `within`: the run
    ends after that. `title` is what the Temporal UI shows of a run.
    """

    title: str
    id_parts: Callable[[RequestT], tuple[str | int, ...]] | None = None
    once: bool = False
    within: timedelta | None = None
    recurrence: Recurrence | None = None
    following: Callable[[RequestT, ResultT], RequestT] | None = None

    def workflow_id(self, request: RequestT) -> str:
        assert self.id_parts is not None, "a schedule names its runs"
        return ":".join((self.name, *map(str, self.id_parts(request))))
