"""The activities: each is a request to Evergrant or through its gateway. No token is in this process."""

import json

from evergrant import AsyncEvergrant
from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from examples.agent.messages import Note


class AgentActivities:
    """The agent's activities with its client."""

    def __init__(self, evergrant: AsyncEvergrant) -> None:
        self._evergrant = evergrant

    @activity.defn
    async def ask(self, note: Note) -> str:
        """Ask a person for this one call. Returns the request's id; the same call is the same request."""
        base = (await self._evergrant.connection(note.connection_id)).api_base_url
        asked = await self._evergrant.ask_for_call(
            note.connection_id,
            method="POST",
            url=f"{base}/notes",
            body=_body(note),
            reason="you wanted a note",
        )
        return asked.id

    @activity.defn
    async def decision(self, approval_id: str) -> None:
        """Fails until a person has approved. Temporal tries again; after a denial it doesn't."""
        found = await self._evergrant.call_approval(approval_id)
        if not found.is_approved:
            raise ApplicationError(
                f"{approval_id} is {found.state}",
                type="NotApproved",
                non_retryable=not found.is_waiting,
                category=ApplicationErrorCategory.BENIGN,
            )

    @activity.defn
    async def write(self, note: Note) -> str:
        """Make the call, which uses the approval up."""
        async with self._evergrant.proxy(note.connection_id) as api:
            answer = await api.post("/notes", content=_body(note))
        return str(answer.raise_for_status().status_code)


def _body(note: Note) -> str:
    """The same bytes each time: what is approved is these bytes."""
    return json.dumps({"note": note.text})
