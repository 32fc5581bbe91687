"""Request and response bodies of a tenant's own definitions."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import Field, field_validator

from evergrant_server.api.http.requests import MAX_INTEGER, Body, Text
from evergrant_server.api.http.responses import View
from evergrant_server.core.definition import CheckResult, Definition, DefinitionState, Rollout
from evergrant_server.core.text import is_storable

Version = Annotated[int, Field(ge=1, le=MAX_INTEGER)]


class DefinitionBody(Body):
    """`definition` has the members of a catalogue file, as JSON."""

    definition: dict[str, Any]
    rollout: Rollout = Rollout()

    @field_validator("definition")
    @classmethod
    def _whole_texts(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not is_storable(value):
            raise ValueError("a text contains NUL or an unpaired surrogate")
        return value


class DecisionBody(Body):
    """`accept_hosts`: the approver accepts that secrets and tokens would be sent to new hosts."""

    version: Version
    reason: Text | None = None
    accept_hosts: bool = False


class RollBackBody(Body):
    version: Version
    reason: Text = "requested"


class DefinitionView(View):
    """`share` of the connections use this version; `succeeded` and `failed` count its stage."""

    id: str
    name: str
    version: int
    state: DefinitionState
    share: float
    rollout: Rollout
    findings: tuple[CheckResult, ...]
    succeeded: int
    failed: int
    proposed_by: str
    decided_by: str | None
    approved: bool | None
    reason: str | None
    document: dict[str, Any]
    created_at: datetime
    changed_at: datetime
    revision: int

    @classmethod
    def of(cls, definition: Definition) -> "DefinitionView":
        return cls(**definition.model_dump(exclude={"tenant"}))
