"""The activity: takes a lease, calls the resource and returns counts and ids."""

import httpx2
from evergrant.temporal import lease
from temporalio import activity
from temporalio.exceptions import ApplicationError

from examples.pipeline.messages import SyncReport, SyncRequest


@activity.defn
async def fetch_contacts(order: SyncRequest) -> SyncReport:
    """Read the resource with the subject's token. A refusal by the resource is not retried."""
    leased = await lease(order.integration, order.subject)
    bearer = {"authorization": f"Bearer {leased.access_token}"}
    async with httpx2.AsyncClient(trust_env=False, timeout=20) as http:
        answer = await http.get(order.resource_url, headers=bearer)
    if answer.status_code in (401, 403):
        raise ApplicationError(
            f"the resource refused the token (HTTP {answer.status_code})",
            type="ResourceRefused",
            non_retryable=True,
        )
    answer.raise_for_status()
    ids = ids_of(answer.json())
    return SyncReport(count=len(ids), ids=ids, generation=leased.generation)


def ids_of(document: object) -> list[str]:
    """The ids in a list of records, in `{"items": [...]}`, or of a single record."""
    match document:
        case {"items": [*records]} | [*records]:
            return [identity for record in records for identity in ids_of(record)]
        case {"id": identity} | {"user": identity}:
            return [str(identity)]
        case _:
            raise ApplicationError("the resource has no ids", type="ResourceUnreadable", non_retryable=True)
