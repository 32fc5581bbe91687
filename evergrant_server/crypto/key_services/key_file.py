"""The key file as a key service: it wraps with keys that are derived from those which the file holds.

`lease`, `refresh` and `intake` are wrapped under the file's current root of that purpose, and open under each
root that it holds. So a file that was exported for a role opens what the role needs, and nothing else.
"""

import asyncio
import secrets
from pathlib import Path
from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from evergrant_server.core.errors import Failure
from evergrant_server.crypto import keyfile
from evergrant_server.crypto.bundle import GATEWAY_WRAPPING, derived_key
from evergrant_server.crypto.envelope import SealingKey
from evergrant_server.crypto.key_services.port import (
    Context,
    FailureReason,
    KeyDescription,
    KeyServiceFailure,
    ServicePurpose,
    ServiceUrl,
)

_NONCE_BYTES = 12
_WRAPPING = "key service"  # what is derived from a key of the file to wrap with it


def open_service(url: ServiceUrl) -> "KeyFileService":
    return KeyFileService(Path(url.key))


class KeyFileService:
    """Reads the file with every call, so that a file that was rotated or restored serves at once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def key_name(self, purpose: ServicePurpose) -> str:
        return f"file:{purpose}"

    async def wrap(self, purpose: ServicePurpose, key: bytes, context: Context) -> bytes:
        """`length of the key's name, name, nonce, wrapped key`."""
        current, keys = await self._keys(purpose)
        name, nonce = current.encode(), secrets.token_bytes(_NONCE_BYTES)
        wrapped = _cipher(keys[current]).encrypt(nonce, key, context.encoded(purpose))
        return bytes((len(name),)) + name + nonce + wrapped

    async def unwrap(self, purpose: ServicePurpose, wrapped: bytes, context: Context) -> bytes:
        _, keys = await self._keys(purpose)
        end = 1 + wrapped[0] if wrapped else 1
        name = wrapped[1:end].decode(errors="replace")
        if len(wrapped) < end + _NONCE_BYTES:
            self._fail(FailureReason.BROKEN, purpose, "wrapped a value that is cut short")
        if name not in keys:
            self._fail(FailureReason.GONE, purpose, f"was {name!r} when it wrapped this, and it isn't in it")
        nonce, body = wrapped[end : end + _NONCE_BYTES], wrapped[end + _NONCE_BYTES :]
        try:
            return _cipher(keys[name]).decrypt(nonce, body, context.encoded(purpose))
        except (InvalidTag, ValueError):
            self._fail(FailureReason.BROKEN, purpose, "didn't wrap this value, or it was altered")

    async def describe(self, purpose: ServicePurpose) -> KeyDescription:
        current, _ = await self._keys(purpose)
        return KeyDescription(self.key_name(purpose), current, in_hardware=False, principal=str(self._path))

    async def close(self) -> None:
        """Nothing is open between two calls."""

    async def _keys(self, purpose: ServicePurpose) -> tuple[str, dict[str, SealingKey]]:
        """The name of the key that wraps, and every key that unwraps, by name."""
        try:
            file = await asyncio.to_thread(keyfile.read, self._path)
        except Failure as failure:
            self._fail(FailureReason.AWAY, purpose, f"can't be read: {failure.detail.removesuffix('.')}")
        roots = file.purposes.get(purpose.value)
        if roots is not None:
            return roots.current, roots.keys
        key = None
        if purpose is ServicePurpose.AUTHORITY:
            key = file.derive
        elif purpose is ServicePurpose.GATEWAY:
            key = file.derived.get(GATEWAY_WRAPPING)
            if file.derive is not None:
                key = SealingKey(GATEWAY_WRAPPING, derived_key(file.derive, GATEWAY_WRAPPING))
        if key is None:
            self._fail(FailureReason.DENIED, purpose, f"isn't in {self._path}, a file for a role without it")
        return purpose.value, {purpose.value: key}

    def _fail(self, reason: FailureReason, purpose: ServicePurpose, why: str) -> NoReturn:
        raise KeyServiceFailure(reason, self.key_name(purpose), why) from None


def _cipher(key: SealingKey) -> AESGCM:
    return AESGCM(derived_key(key, _WRAPPING))
