"""What stands above every backend: the binding of a value to row and purpose, bounds, unsorted failures."""

import asyncio
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from evergrant_server.core.errors import ErrorCode
from evergrant_server.crypto import KeyPurpose, KeyRing, Role
from evergrant_server.crypto.key_services.blocking import Threads
from evergrant_server.crypto.key_services.bound import BoundKeyService
from evergrant_server.crypto.key_services.opening import open_key_service
from evergrant_server.crypto.key_services.port import (
    Context,
    FailureReason,
    KeyServiceFailure,
    ServicePurpose,
)
from tests.fakes.failures import fails
from tests.fakes.key_service import ScriptedKeys, ScriptedKeyService
from tests.fakes.patience import PATIENCE_S

ROW, LEASE = Context("root_1"), ServicePurpose.LEASE
VALUE = b"a bundle is longer than thirty-two bytes" * 20


@pytest.fixture
def service() -> BoundKeyService:
    return ScriptedKeys().of(Role.OPERATOR)


async def reason_of(
    service: BoundKeyService, wrapped: bytes, purpose: ServicePurpose = LEASE
) -> FailureReason:
    with pytest.raises(KeyServiceFailure, match="root_1") as caught:
        await service.unwrap(purpose, wrapped, ROW)
    return caught.value.reason


async def test_a_value_of_any_length_opens_in_its_row_and_for_its_purpose_alone(service: BoundKeyService):
    wrapped = await service.wrap(LEASE, VALUE, ROW)
    assert await service.unwrap(LEASE, wrapped, ROW) == VALUE
    assert await service.wrap(LEASE, VALUE, ROW) != wrapped
    with fails(ErrorCode.SEAL_BROKEN, "root_2"):
        await service.unwrap(LEASE, wrapped, Context("root_2"))
    for purpose in set(ServicePurpose) - {LEASE}:
        assert await reason_of(service, wrapped, purpose) is FailureReason.BROKEN


async def test_every_cut_and_every_altered_byte_is_a_broken_seal(service: BoundKeyService):
    wrapped = await service.wrap(LEASE, b"v" * 32, ROW)
    for at in range(len(wrapped)):
        assert await reason_of(service, wrapped[:at]) is FailureReason.BROKEN, at
        altered = wrapped[:at] + bytes((wrapped[at] ^ 1,)) + wrapped[at + 1 :]
        assert await reason_of(service, altered) is FailureReason.BROKEN, at


async def test_another_purpose_or_format_is_refused_before_the_service_is_called():
    keys = ScriptedKeys()
    service = keys.of(Role.OPERATOR)
    wrapped = await service.wrap(LEASE, VALUE, ROW)
    keys.calls.clear()
    await reason_of(service, wrapped, ServicePurpose.REFRESH)
    await reason_of(service, b"\x02" + wrapped[1:])
    await reason_of(service, b"")
    assert keys.calls == []


class Nonsense(ScriptedKeyService):
    """Unwraps whatever it is told to, or raises it."""

    answer: bytes | Exception | None = None

    async def unwrap(self, purpose: ServicePurpose, wrapped: bytes, context: Context) -> bytes:
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is None:
            await asyncio.Event().wait()
            raise AssertionError
        return self.answer


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", FailureReason.BROKEN),
        (b"short", FailureReason.BROKEN),
        (b"k" * 33, FailureReason.BROKEN),
        (b"k" * 32, FailureReason.BROKEN),
        (ConnectionError("password=hunter2"), FailureReason.AWAY),
        (ValueError("password=hunter2"), FailureReason.AWAY),
        (None, FailureReason.AWAY),
    ],
)
async def test_a_backends_nonsense_is_sorted_and_its_words_are_not_repeated(
    answer: bytes | Exception | None, reason: FailureReason
):
    backend = Nonsense(ScriptedKeys(), "worker", set(ServicePurpose))
    service = BoundKeyService(backend, limit_s=0.05)
    wrapped = await service.wrap(LEASE, VALUE, ROW)
    backend.answer = answer
    with pytest.raises(KeyServiceFailure, match="scripted:lease") as caught:
        await service.unwrap(LEASE, wrapped, ROW)
    assert caught.value.reason is reason
    assert "hunter2" not in str(caught.value)
    assert (caught.value.retry_after is None) is (reason is not FailureReason.AWAY)


async def test_a_blocked_client_is_away_and_keeps_neither_the_loop_nor_the_process():
    threads, free = Threads(limit_s=2.0), threading.Event()
    calls = [threads.run("aws-kms:x", lambda: free.wait(PATIENCE_S)) for _ in range(9)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(result) for result in results} == {KeyServiceFailure}
    blocked = [thread for thread in threading.enumerate() if thread.name == "key service"]
    assert len(blocked) <= 4
    assert all(thread.daemon for thread in blocked)
    free.set()
    for thread in blocked:
        thread.join()
    await asyncio.sleep(0)
    assert await threads.run("aws-kms:x", lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await threads.run("aws-kms:x", lambda: 1 // 0)


async def test_a_file_for_a_role_wraps_and_opens_what_the_role_needs(tmp_path: Path):
    full = KeyRing.create(tmp_path / "keys.json")
    services = {"full": open_key_service("file", tmp_path / "keys.json")}
    for role in (Role.API, Role.GATEWAY):
        full.export(tmp_path / f"{role}.json", role)
        services[role] = open_key_service("file", tmp_path / f"{role}.json")
    opened = {name: set[str]() for name in services}
    for purpose in ServicePurpose:
        wrapped = await services["full"].wrap(purpose, VALUE, ROW)
        for name, service in services.items():
            with suppress(KeyServiceFailure):
                assert await service.unwrap(purpose, wrapped, ROW) == VALUE
                opened[name].add(purpose)
    assert opened == {
        "full": set(ServicePurpose),
        "api": {"lease", "intake", "authority", "gateway"},
        "gateway": {"lease", "gateway"},
    }


async def test_another_file_names_the_key_that_it_lacks_and_none_is_away(tmp_path: Path):
    first = KeyRing.create(tmp_path / "keys.json")
    KeyRing.create(tmp_path / "other.json")
    wrapped = await open_key_service("file", tmp_path / "keys.json").wrap(LEASE, VALUE, ROW)
    with fails(ErrorCode.KEY_GONE, first.current_root_id(KeyPurpose.LEASE)):
        await open_key_service("file", tmp_path / "other.json").unwrap(LEASE, wrapped, ROW)
    (tmp_path / "keys.json").unlink()
    with fails(ErrorCode.KEY_UNAVAILABLE, "keys.json doesn't exist"):
        await open_key_service("file", tmp_path / "keys.json").unwrap(LEASE, wrapped, ROW)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("s3:bucket/{purpose}", "there is no key service 's3'"),
        ("vault:https://vault.example/transit/evergrant", r"must have \{purpose\}"),
    ],
)
def test_a_url_that_names_no_service_says_what_would_be_right(url: str, why: str, tmp_path: Path):
    with pytest.raises(ValueError, match=why):
        open_key_service(url, tmp_path)
