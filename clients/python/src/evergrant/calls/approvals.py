"""An admin's calls for commands that a second admin must approve (the server's EVERGRANT_FOUR_EYES)."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from evergrant.calls.call import Call, Page, object_parser, page_parser, path_of, post


@dataclass(frozen=True, slots=True)
class Approval:
    """A command that waits: `command` and `body` are its request, `by` is who sent it. `resolves_to` is what
    its names stand for (ids, revisions, issuers, endpoints): if that changes, the approval no longer fits.
    """

    id: str
    by: str
    command: str
    body: Mapping[str, object] | None
    created_at: datetime
    expires_at: datetime
    approved_by: str | None
    resolves_to: Mapping[str, object] | None = None


def approvals() -> Call[Page[Approval]]:
    """The commands that wait for an approval, or for being sent again after it."""
    return Call("GET", "/v1/approvals", page_parser("approval", Approval))


def approve(approval_id: str) -> Call[Approval]:
    """Approve another app's or person's command. They may send it again, once, until `expires_at`."""
    return post(path_of("approvals", approval_id), object_parser("approval", Approval), None)
