"""One suite for all key services: what is wrapped opens in its place alone, each failure is sorted, and
over with its cause: the same object serves again.

docs/reference/key-services.md lists what ran against what.
"""

import secrets
from collections.abc import Callable

import pytest

from evergrant_server.core.errors import ErrorCode
from evergrant_server.crypto.key_services.bound import BoundKeyService
from evergrant_server.crypto.key_services.port import (
    Context,
    FailureReason,
    KeyServiceFailure,
    ServicePurpose,
)
from tests.conformance.key_services.conftest import Running
from tests.fakes.key_services import acts
from tests.fakes.key_services.acts import Act, Backend, Case
from tests.fakes.patience import PATIENCE_S, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

LEASE = ServicePurpose.LEASE
ROW = Context("root_of_the_test")
SHORT_S = 0.5  # the limit of a call that is never answered
VALUE = secrets.token_bytes(32)
CODES = {
    FailureReason.AWAY: ErrorCode.KEY_UNAVAILABLE,
    FailureReason.DENIED: ErrorCode.KEY_DENIED,
    FailureReason.GONE: ErrorCode.KEY_GONE,
    FailureReason.BROKEN: ErrorCode.SEAL_BROKEN,
}


def named(value: object) -> str | None:
    return value.title if isinstance(value, Backend) else str(value) if isinstance(value, Act) else None


every_service = pytest.mark.parametrize("running", acts.BACKENDS, indirect=True, ids=named)
every_act = pytest.mark.parametrize(
    ("running", "act"),
    [(backend, act) for backend in acts.BACKENDS for act in backend.acts],
    indirect=["running"],
    ids=named,
)


async def refused(
    running: Running, wrapped: bytes, *, purpose: ServicePurpose = LEASE, row: Context = ROW
) -> KeyServiceFailure:
    """What the service says to a value that it must not open."""
    with pytest.raises(KeyServiceFailure) as raised:
        await running.service.unwrap(purpose, wrapped, row)
    return checked(running, raised.value, purpose, row)


def checked(
    running: Running, failure: KeyServiceFailure, purpose: ServicePurpose, row: Context
) -> KeyServiceFailure:
    """The failure, if it names the key and the row, is one that callers know, and quotes no secret."""
    assert failure.key == running.service.key_name(purpose)
    assert failure.row == row.row
    assert f"root_key {row.row}: " in failure.detail
    assert failure.code is CODES[failure.reason]
    assert (failure.retry_after is not None) is (failure.reason is FailureReason.AWAY)
    assert not [secret for secret in running.world.secrets if secret in failure.detail]
    return failure


@every_service
async def test_what_is_wrapped_opens(running: Running) -> None:
    for purpose in ServicePurpose:
        for value in (VALUE, b"", secrets.token_bytes(5_000)):  # a gateway's secrets are longer than a key
            wrapped = await running.service.wrap(purpose, value, ROW)
            assert len(value) < 12 or value not in wrapped
            assert await running.service.unwrap(purpose, wrapped, ROW) == value


@every_service
async def test_the_same_value_is_wrapped_differently_each_time(running: Running) -> None:
    assert await running.service.wrap(LEASE, VALUE, ROW) != await running.service.wrap(LEASE, VALUE, ROW)


@every_service
async def test_another_purposes_key_opens_nothing(running: Running) -> None:
    """Nor where the purpose's name in the value is replaced."""
    wrapped = await running.service.wrap(LEASE, VALUE, ROW)
    for purpose in set(ServicePurpose) - {LEASE}:
        assert (await refused(running, wrapped, purpose=purpose)).reason is FailureReason.BROKEN
        name = purpose.value.encode()
        renamed = wrapped[:1] + bytes((len(name),)) + name + wrapped[head_of(wrapped) :]
        failure = await refused(running, renamed, purpose=purpose)
        assert failure.reason in (FailureReason.BROKEN, FailureReason.GONE), failure.detail


@every_service
async def test_another_row_opens_nothing(running: Running) -> None:
    wrapped = await running.service.wrap(LEASE, VALUE, ROW)
    failure = await refused(running, wrapped, row=Context("root_of_another"))
    assert failure.reason is FailureReason.BROKEN


@every_service
async def test_another_format_opens_nothing(running: Running) -> None:
    wrapped = await running.service.wrap(LEASE, VALUE, ROW)
    for version in (0, 2, 255):
        assert (await refused(running, bytes((version,)) + wrapped[1:])).reason is FailureReason.BROKEN


@every_service
async def test_a_value_that_is_cut_opens_nothing(running: Running) -> None:
    """Cut in each of its parts, and where the part that the service itself wrapped is cut."""
    wrapped = await running.service.wrap(LEASE, VALUE, ROW)
    begin, end = inner_of(wrapped)
    for length in (0, 1, 2, begin - 1, begin, end, end + 12, len(wrapped) - 1):
        assert (await refused(running, wrapped[:length])).reason is FailureReason.BROKEN, length
    for length in (1, (end - begin) // 2, end - begin - 1):
        cut = wrapped[: begin - 2] + length.to_bytes(2) + wrapped[begin : begin + length] + wrapped[end:]
        assert (await refused(running, cut)).reason is FailureReason.BROKEN, length


@every_service
async def test_flipped_bits_open_nothing(running: Running) -> None:
    wrapped = await running.service.wrap(LEASE, VALUE, ROW)
    begin, end = inner_of(wrapped)
    for at in (0, 1, 2, begin - 2, end - 1, end, end + 12, len(wrapped) - 1):
        assert (await refused(running, flipped(wrapped, at))).reason is FailureReason.BROKEN, at
    for at in range(
        begin, end, (end - begin) // 9
    ):  # where a service keeps its own names, it may say that it has no such key
        assert (await refused(running, flipped(wrapped, at))).reason is not FailureReason.AWAY, at


def head_of(wrapped: bytes) -> int:
    """Where the length of what the service wrapped begins: behind the format and the purpose."""
    return 2 + wrapped[1]


def inner_of(wrapped: bytes) -> tuple[int, int]:
    """Where what the service itself wrapped begins and ends."""
    begin = head_of(wrapped) + 2
    return begin, begin + int.from_bytes(wrapped[begin - 2 : begin])


def flipped(wrapped: bytes, at: int) -> bytes:
    return wrapped[:at] + bytes((wrapped[at] ^ 0x10,)) + wrapped[at + 1 :]


@every_service
async def test_a_key_is_described(running: Running) -> None:
    for purpose in ServicePurpose:
        description = await running.service.describe(purpose)
        assert description.key == running.service.key_name(purpose)
        assert purpose.value in description.key
        assert description.is_enabled
        assert not [secret for secret in running.world.secrets if secret in repr(description)]


# of a session that a driver's restart ended, python-pkcs11's iterator complains once more when it is deleted
@pytest.mark.filterwarnings("ignore:Exception ignored in. 'pkcs11:pytest.PytestUnraisableExceptionWarning")
@every_act
async def test_a_failure_is_sorted_and_over_with_its_cause(running: Running, act: Act) -> None:
    wrapped = await running.service.wrap(LEASE, VALUE, ROW)
    service = running.service
    if act.is_at_start or act.case is Case.BLOCKED:
        service = running.world.opened(SHORT_S if act.case is Case.BLOCKED else PATIENCE_S)
    async with running.world.acting(act, LEASE):
        attempts: list[Callable[[], object]] = [lambda: service.unwrap(LEASE, wrapped, ROW)]
        if act.case is not Case.BLOCKED and not act.still_wraps:
            attempts.append(lambda: service.wrap(LEASE, VALUE, ROW))
        for attempt in attempts:
            with pytest.raises(KeyServiceFailure) as raised:
                await attempt()  # type: ignore[misc]  # both are coroutines
            failure = checked(running, raised.value, LEASE, ROW)
            assert failure.reason is acts.REASONS[act.case], failure.detail
        if act.case in (Case.DISABLED, Case.DELETION) and not act.still_wraps:
            assert not await is_described_as_enabled(service)
    if not act.loses:
        await eventually(lambda: opens(service, wrapped))
    if service is not running.service:
        await service.close()
    await eventually(lambda: opens(running.service, wrapped) if not act.loses else wraps(running.service))


async def is_described_as_enabled(service: BoundKeyService) -> bool:
    try:
        return (await service.describe(LEASE)).is_enabled
    except KeyServiceFailure as failure:
        return failure.reason is not FailureReason.GONE


async def opens(service: BoundKeyService, wrapped: bytes) -> bool:
    """At the first attempt or, after a driver was restarted or with a short limit, at the next."""
    try:
        return await service.unwrap(LEASE, wrapped, ROW) == VALUE
    except KeyServiceFailure as failure:
        assert_away(failure)
        return False


async def wraps(service: BoundKeyService) -> bool:
    return await service.unwrap(LEASE, await service.wrap(LEASE, VALUE, ROW), ROW) == VALUE


def assert_away(failure: KeyServiceFailure) -> None:
    assert failure.reason is FailureReason.AWAY, failure.detail
