"""One key of the service for each purpose, one principal for each role: what the policies of
deploy/key-services permit and refuse, at a real OpenBao and at moto's IAM.
"""

import re
from pathlib import Path

import pytest

from evergrant_server.crypto.key_services.port import (
    Context,
    FailureReason,
    KeyServiceFailure,
    ServicePurpose,
)
from tests.conformance.key_services.conftest import Running
from tests.fakes.key_services import acts
from tests.fakes.key_services.openbao import OpenBaoWorld

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[3]
ROW = Context("root_of_the_test")
OPENED = {
    "api": {ServicePurpose.LEASE, ServicePurpose.INTAKE, ServicePurpose.AUTHORITY},
    "gateway": {ServicePurpose.LEASE, ServicePurpose.GATEWAY},
    "worker": set(ServicePurpose),
}
with_policies = pytest.mark.parametrize(
    "running", [acts.OPENBAO, acts.AWS], indirect=True, ids=lambda backend: backend.title
)


async def outcome_of(coroutine: object) -> FailureReason | None:
    try:
        await coroutine  # type: ignore[misc]  # one of two coroutines
    except KeyServiceFailure as failure:
        return failure.reason
    return None


@with_policies
async def test_a_principal_opens_what_is_its_roles_and_wraps_nothing_unless_it_rotates(
    running: Running,
) -> None:
    """The API opens no refresh roots; a gateway neither those nor what others sign with."""
    wrapped = {purpose: await running.service.wrap(purpose, b"value", ROW) for purpose in ServicePurpose}
    for role, opened in OPENED.items():
        async with running.world.as_role(role) as service:
            for purpose in ServicePurpose:
                opens = await outcome_of(service.unwrap(purpose, wrapped[purpose], ROW))
                wraps = await outcome_of(service.wrap(purpose, b"value", ROW))
                describes = await outcome_of(service.describe(purpose))
                denied = None if purpose in opened else FailureReason.DENIED
                assert (opens, describes) == (denied, denied), (role, purpose)
                assert wraps is (None if role == "worker" else FailureReason.DENIED), (role, purpose)


@pytest.mark.parametrize("running", [acts.OPENBAO], indirect=True, ids=["openbao"])
async def test_the_pages_commands_prepare_openbao(running: Running) -> None:
    page = (ROOT / "docs/security/key-services.md").read_text(encoding="utf-8")
    (commands,) = re.findall(r"```sh\n(bao .*?)```", page, re.DOTALL)
    mounted = commands.replace("bao secrets enable transit", "bao secrets enable -path=of-the-page transit")
    assert mounted != commands
    assert isinstance(running.world, OpenBaoWorld)
    await running.world.run(
        mounted.replace("transit/keys", "of-the-page/keys").replace("policy write ", "policy write page-")
    )


@with_policies
async def test_a_description_says_as_whom_the_process_calls(running: Running) -> None:
    for role in OPENED:
        async with running.world.as_role(role) as service:
            description = await service.describe(ServicePurpose.LEASE)
            assert description.principal is not None
            assert role in description.principal
