"""One way that a refresh or a code exchange can take: what the provider answers, and what else befalls it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from evergrant_server.core.integrations import Rotation
from tests.fakes.providers.scripted_provider import Answer
from tests.faults.harness.instrumentation.passages import Fault
from tests.faults.harness.instrumentation.points import labelled

REFRESH, EXCHANGE = "refresh_grant", "exchange_code"
CONFIRM, LAPSE = "confirm_and_exchange", "lapse_consent"  # of a bound consent
ROTATIONS = (Rotation.NONE, Rotation.GRACE, Rotation.STRICT)
CROOKED = "crooked"  # a definition that can't be used; the workers' registry has it
PROVING = "proving"  # its tokens are bound to a key (RFC 9449)
JOURNALLED = labelled("the reply is journalled")
LIMITED = "limited"  # a definition that names a limit of its token endpoint
ON_TRIAL = "on-trial"  # a definition of which the tenant has a staged version
NARROWING = "narrowing"  # it issues narrower tokens by a refresh


# while another connection's refreshes worked; once, after an answer was lost; twice, before another
# connection's refresh worked
FOR_DAYS, AFTER_A_LOST_ANSWER, BESIDE_A_WITNESS = "for days", "after a lost answer", "beside a witness"


def _nothing(rotation: Rotation) -> tuple[Answer, ...]:
    return ()


@dataclass(frozen=True)
class Scenario:
    """One way: what the provider is told to answer, and the faults besides that of the case."""

    name: str
    flow: str
    answers: Callable[[Rotation], tuple[Answer, ...]] = _nothing
    faults: tuple[Fault, ...] = ()
    refused: bool = False  # the provider says no, or the consent can't be exchanged: that is the right end
    provider: str = "generic"
    refreshable: bool = True
    started: bool = True
    secrets: str = "right"
    replayed: bool = False  # a worker before this one died with the answer in its journal
    neighbour: bool = False  # and this one was there already: it has a journal of its own
    leaves: Fault | None = None  # of the worker before this one; None: it died with a journalled reply
    layouts: tuple[str, ...] = ("one worker", "two, one host", "two hosts")
    sweeps_late: bool = False  # the refresh comes before it has looked through any journal
    queued: bool = False  # the circuit lets it through after a moment, as at the end of an outage
    leased: bool = False
    looks: bool = False  # a caller comes before the next try: the provider is asked only if there is evidence
    ahead: bool = False  # no caller waits for it
    scopes: tuple[str, ...] = ()  # a narrower token is requested
    subject: str = "user-1"  # who is logged in to the app
    recurs: str = ""  # what has been refused before: one of the words below
    late: bool = False  # the time for the confirmation is over
    unread: bool = False  # its definition can't read the provider's tokens, and is repaired meanwhile
    held: bool = False  # the provider answers late, and the worker is shut down meanwhile
    ends: bool = False  # and it ends then, although it still waits
    crosses: Callable[[asyncio.Event], Answer] | None = None  # stopped, it goes on while another use waits
    rotations: tuple[Rotation, ...] = field(default=ROTATIONS)

    @property
    def requested(self) -> dict[str, Any]:
        """What a workflow says of the refresh."""
        only = {"only_if_leased": self.leased, "may_be_postponed": self.ahead}
        only |= {"only_with_evidence": self.looks}
        return {**only, "scopes": self.scopes}

    @property
    def begins_answered(self) -> bool:
        """An answer lies in a journal before the first worker does anything."""
        return self.replayed and (self.leaves is None or self.leaves.point == JOURNALLED)
