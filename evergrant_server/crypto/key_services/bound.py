"""The binding of a wrapped value to its row and purpose, once above every backend.

The backend wraps a fresh key of 32 bytes; that key seals the value with AES-256-GCM, the context as
additional authenticated data. So every backend is equal, though not every service takes a context, and a
value may be longer than a service would wrap.
"""

import asyncio
import secrets
from collections.abc import Awaitable
from typing import TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from evergrant_server.crypto.envelope import KEY_BYTES
from evergrant_server.crypto.key_services.port import (
    CALL_LIMIT_S,
    Context,
    FailureReason,
    KeyDescription,
    KeyService,
    KeyServiceFailure,
    ServicePurpose,
)

T = TypeVar("T")
_FORMAT = 1
_NONCE_BYTES = 12
_TAG_BYTES = 16
SLACK_S = 1.0  # over the limit that a backend keeps by itself, whose failure says more


def _head(purpose: ServicePurpose) -> bytes:
    """Format, and the purpose in clear: a value of another one is refused before the service is called."""
    name = purpose.value.encode()
    return bytes((_FORMAT, len(name))) + name


class BoundKeyService:
    """A key service whose wrapped values open in their row and for their purpose alone.

    Each call is bounded. Raises KeyServiceFailure that names the row, and nothing else.
    """

    def __init__(self, backend: KeyService, limit_s: float = CALL_LIMIT_S + SLACK_S) -> None:
        self._backend = backend
        self._limit_s = limit_s

    def key_name(self, purpose: ServicePurpose) -> str:
        return self._backend.key_name(purpose)

    async def wrap(self, purpose: ServicePurpose, value: bytes, context: Context) -> bytes:
        """Wrap a value of any length: head, length of the wrapped key, wrapped key, nonce, sealed value."""
        key = secrets.token_bytes(KEY_BYTES)
        wrapped = await self._call(purpose, self._backend.wrap(purpose, key, context), context.row)
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = AESGCM(key).encrypt(nonce, value, context.encoded(purpose))
        return _head(purpose) + len(wrapped).to_bytes(2) + wrapped + nonce + sealed

    async def unwrap(self, purpose: ServicePurpose, wrapped: bytes, context: Context) -> bytes:
        """The value that was wrapped for this purpose and row."""
        head = _head(purpose)
        if wrapped[:1] != head[:1]:
            raise self._broken(purpose, context, "wrapped no value of a known format")
        if not wrapped.startswith(head):
            raise self._broken(purpose, context, "wrapped no value of this purpose")
        begin = len(head) + 2
        end = begin + int.from_bytes(wrapped[len(head) : begin])
        if len(wrapped) < end + _NONCE_BYTES + _TAG_BYTES or end == begin:
            raise self._broken(purpose, context, "has a wrapped value that is cut short")
        call = self._backend.unwrap(purpose, wrapped[begin:end], context)
        key = await self._call(purpose, call, context.row)
        if len(key) != KEY_BYTES:
            raise self._broken(purpose, context, f"unwrapped {len(key)} bytes in place of {KEY_BYTES}")
        nonce, sealed = wrapped[end : end + _NONCE_BYTES], wrapped[end + _NONCE_BYTES :]
        try:
            return AESGCM(key).decrypt(nonce, sealed, context.encoded(purpose))
        except InvalidTag:
            why = "wrapped a value that was altered, or is of another row or purpose"
            raise self._broken(purpose, context, why) from None

    async def describe(self, purpose: ServicePurpose) -> KeyDescription:
        return await self._call(purpose, self._backend.describe(purpose))

    async def close(self) -> None:
        await self._backend.close()

    async def _call(self, purpose: ServicePurpose, call: Awaitable[T], row: str | None = None) -> T:
        try:
            async with asyncio.timeout(self._limit_s):
                return await call
        except KeyServiceFailure as failure:
            raise (failure if row is None else failure.of(row)) from None
        except TimeoutError:
            raise self._away(purpose, row, f"didn't answer within {self._limit_s:g} s") from None
        except Exception as error:  # its text may quote a secret
            raise self._away(purpose, row, f"failed with {type(error).__name__}") from None

    def _away(self, purpose: ServicePurpose, row: str | None, why: str) -> KeyServiceFailure:
        return KeyServiceFailure(FailureReason.AWAY, self.key_name(purpose), why, row=row)

    def _broken(self, purpose: ServicePurpose, context: Context, why: str) -> KeyServiceFailure:
        return KeyServiceFailure(FailureReason.BROKEN, self.key_name(purpose), why, row=context.row)
