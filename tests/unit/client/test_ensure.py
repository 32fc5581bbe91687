"""`workflow.ensure` on a real Temporal server: it waits for a person between two tries, without a link."""

from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import pytest
import pytest_asyncio
from evergrant import ConsentRequired
from evergrant.temporal import Ensured, EvergrantPlugin
from evergrant.temporal.workflow import EnsureToken
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.temporal import TemporalServer, running_temporal
from tests.unit.client.scripted_evergrant import (
    LINK,
    TOKEN,
    ScriptedEvergrant,
    ScriptedResponse,
    connection,
    consent_required,
    lease,
    problem,
)
from tests.unit.client.temporal_stand_ins import Waits

ASK, LOOK = "POST /v1/lease", "GET /v1/connections/con_1"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def temporal(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TemporalServer]:
    async with running_temporal(tmp_path_factory.mktemp("temporal")) as server:
        yield server


class Users:
    """A worker that is started and stopped, the links that its hook has had, and a workflow that waits."""

    def __init__(self, client: Client, url: str) -> None:
        self.client, self.url, self.queue = client, url, f"users-{uuid4()}"
        self.links: list[tuple[EnsureToken, str]] = []

    def worker(self) -> Worker:
        plugin = EvergrantPlugin(
            self.url, "evg_key", on_consent_required=self._on_link,
            deadline=timedelta(seconds=PATIENCE_S), cache_leases_for=timedelta(0),
        )  # fmt: skip
        return Worker(self.client, task_queue=self.queue, workflows=[Waits], plugins=[plugin])

    async def start(self, timeout_s: float = PATIENCE_S) -> WorkflowHandle[Waits, Ensured]:
        return await self.client.start_workflow(
            Waits.run, args=[["read"], timeout_s], id=f"waits-{uuid4()}", task_queue=self.queue
        )

    async def _on_link(self, wanted: EnsureToken, required: ConsentRequired) -> None:
        self.links.append((wanted, required.connect_url))


@pytest.fixture
async def users(temporal: TemporalServer, evergrant: ScriptedEvergrant) -> Users:
    return Users(await temporal.client(), evergrant.url)


def looks(**members: object) -> ScriptedResponse:
    return ScriptedResponse(200, connection(**members))


async def test_it_goes_on_after_the_consent_in_another_worker_and_no_link_is_in_its_history(
    users: Users, evergrant: ScriptedEvergrant
):
    evergrant.script(ASK, consent_required(), lease())
    evergrant.script(LOOK, looks(state="pending_consent"))
    async with users.worker():
        handle = await users.start()

        async def waits_again() -> bool:
            return evergrant.count(LOOK) > 0

        assert await eventually(waits_again)
    evergrant.script(LOOK, looks(state="active", scopes=["read"]))
    async with users.worker():
        assert await handle.result() == Ensured("con_1", 7, (await handle.result()).expires_at, ("read",))
    assert users.links == [(EnsureToken("crm", "alice", "default", ("read",)), LINK)]
    assert evergrant.count(ASK) == 2
    raw = b"".join(event.SerializeToString() for event in (await handle.fetch_history()).events)
    assert b"con_1" in raw
    assert not any(secret.encode() in raw for secret in (LINK, TOKEN, "evg_key"))


async def test_missing_scopes_are_waited_for_while_the_connection_is_active(
    users: Users, evergrant: ScriptedEvergrant
):
    missing = problem(
        409, "ReconnectNeeded", "scope_not_granted", connect_url=LINK, connection_id="con_1", scopes="write"
    )
    evergrant.script(ASK, missing, lease())
    evergrant.script(LOOK, looks(scopes=["read"]), looks(scopes=["read", "write"]))
    async with users.worker():
        assert (await (await users.start()).result()).generation == 7
    assert (evergrant.count(LOOK), evergrant.count(ASK), len(users.links)) == (2, 2, 1)


async def test_an_expired_link_is_replaced_by_a_new_one(users: Users, evergrant: ScriptedEvergrant):
    links = [f"{LINK}-{number}" for number in range(2)]

    def asked(link: str, ends: str | None) -> ScriptedResponse:
        members = {"connect_url": link, "connection_id": "con_1", "expires_at": ends}
        return problem(409, "ReconnectNeeded", "consent_required", None, **members)

    evergrant.script(ASK, asked(links[0], "2020-01-01T00:00:00Z"), asked(links[1], None), lease())
    evergrant.script(LOOK, looks(state="pending_consent"), looks(scopes=["read"]))
    async with users.worker():
        await (await users.start()).result()
    assert [link for _, link in users.links] == links


ENDS = {
    "denied by the subject": ([consent_required()], looks(state="denied", reason="consent_denied")),
    "revoked": ([consent_required()], looks(state="revoked", reason="connection_revoked")),
    "not permitted": ([problem(403, "Denied", "scope_not_permitted")], looks()),
}


@pytest.mark.parametrize("how", ENDS)
async def test_what_no_consent_repairs_ends_it_with_its_code(
    users: Users, evergrant: ScriptedEvergrant, how: str
):
    asked, looked = ENDS[how]
    evergrant.script(ASK, *asked)
    evergrant.script(LOOK, looked)
    async with users.worker():
        code = await failure_of(await users.start())
    assert code == (looked.body["reason"] or "scope_not_permitted")
    assert evergrant.count(ASK) == 1


async def test_its_time_ends(users: Users, evergrant: ScriptedEvergrant):
    evergrant.script(ASK, consent_required())
    evergrant.script(LOOK, looks(state="pending_consent"))
    async with users.worker():
        assert await failure_of(await users.start(timeout_s=0.5)) == "timeout"


async def failure_of(handle: WorkflowHandle[Waits, Ensured]) -> str | None:
    with pytest.raises(WorkflowFailureError) as failed:
        await handle.result()
    assert isinstance(failed.value.cause, ApplicationError)
    return failed.value.cause.type
